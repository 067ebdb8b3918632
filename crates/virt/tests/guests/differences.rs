//! Where libvirt and we differ with reason: the rows of `docs/libvirt.md`.

/// A difference that shows in what is said: its row, which begins so; a part of what we say, and of what libvirt does.
pub struct Difference {
    pub row: &'static str,
    ours: &'static str,
    theirs: &'static str,
}

/// What we say of a guest that we would start.
pub const ACCEPTED: &str = "accepted";
pub const CLOSED: &str = "a chain that XML closes is not looked at";
pub const DATA_FILE: &str = "a data file is not seen where a backing format stands before it";
pub const WORDS: &str = "a backing image whose recorded format is `parallels` or `vhdx` is `raw`";
pub const OPTIONAL: &str = "a disk whose image is missing and whose `startupPolicy` is `optional`";
pub const TRANSIENT: &str = "a `<transient/>` disk gets a new overlay";
pub const HANDED_OVER: &str = "images that are passed as open files";
pub const DEEP: &str = "more than 25 layers do not start";

const fn said(row: &'static str, ours: &'static str, theirs: &'static str) -> Difference {
    Difference { row, ours, theirs }
}

pub const SAID: &[Difference] = &[
    said(
        "a backing image of a recorded format that nobody knows is `raw`",
        "recorded as the format of backing image",
        "<domain",
    ),
    said(
        "a backing image that is a folder is a disk of type `dir`",
        "it is a directory",
        "storage type 'dir' requires use of storage format 'fat'",
    ),
    said(
        "`json:` references with a format driver, and `file://`",
        ACCEPTED,
        "missing parser implementation for JSON backing volume driver",
    ),
    said(
        "`json:` references with a format driver, and `file://`",
        ACCEPTED,
        "invalid backing protocol 'file'",
    ),
    said(
        "an encrypted image below, of which no XML names the secret",
        "and no <encryption> in XML names its secret",
        "Unexpected enum value 0 for virStorageEncryptionEngine",
    ),
    said(
        "a qcow2 header that is cut off: `An error occurred, but the cause is unknown`",
        "the qcow2 header is cut off",
        "An error occurred, but the cause is unknown",
    ),
    said(
        "a `json:` reference that ends early: `failed to parse JSON: continue`",
        "failed to parse JSON: EOF",
        "failed to parse JSON: continue",
    ),
    said(DEEP, ACCEPTED, "is self-referential or too deeply nested"),
    said(
        DEEP,
        ACCEPTED,
        "backing chains more than 200 layers deep are not supported",
    ),
    said(
        "more than 200 layers in XML are taken",
        "backing chains more than 200 layers deep are not supported",
        "",
    ),
];

/// Those that show in what a guest is.
pub const SHOWN: &[&str] = &[CLOSED, DATA_FILE, WORDS, OPTIONAL, TRANSIENT, HANDED_OVER, DEEP];

/// Those that show in no guest that is compared, or in each: what is left out of the comparison.
const LEFT_OUT: &[&str] = &[
    "secrets are handed over encrypted",
    "the helper for managed reservations listens in the folder of the running guest",
    "every throttle group of the domain is an object",
    "a disk whose throttle filter names no group",
    "SSH and HTTP served by nbdkit",
];

/// The row in which the two differ so.
pub fn row(ours: &str, theirs: &str) -> Option<&'static str> {
    let found = SAID
        .iter()
        .find(|known| ours.contains(known.ours) && theirs.contains(known.theirs));
    found.map(|known| known.row)
}

#[test]
fn what_is_left_to_differ_is_what_the_documentation_lists() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/libvirt.md")).unwrap();
    let guests = page.split("## ").find(|part| part.starts_with("Guests")).unwrap();
    let rows: Vec<_> = guests
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter(|row| !row.starts_with("libvirt |") && !row.starts_with("---"))
        .collect();
    let mut known: Vec<_> = SAID.iter().map(|difference| difference.row).collect();
    known.extend(SHOWN.iter().chain(LEFT_OUT));
    let unlisted: Vec<_> = known
        .iter()
        .filter(|known| !rows.iter().any(|row| row.starts_with(**known)))
        .collect();
    let unknown: Vec<_> = rows
        .iter()
        .filter(|row| !known.iter().any(|known| row.starts_with(known)))
        .collect();
    assert!(
        unlisted.is_empty() && unknown.is_empty(),
        "{unlisted:#?} {unknown:#?}"
    );
}
