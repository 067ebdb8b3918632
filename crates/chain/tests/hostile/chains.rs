//! References that lead where they should not, and chains that do not end.

use super::Expected::{self, Broken, Reads, Unreadable};
use super::images::{COPIED, DATA, empty, empty_with, mapped, mapped_in, over, with32, with64, write};
use super::{Row, seen};
use catena::ErrorKind::{
    BadReference, FormatUnknown, InvalidFormat, Loop, NotFound, Refused, TooDeep, Unsupported,
};
use catena::{End, Format, OpenEnd, Policy};
use rustix::fs::{CWD, FileType, Mode};
use std::path::Path;

/// One overlay of that reference and format.
fn to(name: &'static str, reference: &[u8], format: &[u8], expected: Expected) -> Row {
    Row::image(name, over(reference, format), expected)
}

/// The chain goes on where nobody can follow.
fn elsewhere() -> Expected {
    Expected::Seen(Box::new(|chain| {
        assert_eq!(chain.layers.len(), 2);
        assert!(
            matches!(chain.end, End::OpenEnded(OpenEnd::NotTraversable)),
            "{:?}",
            chain.end
        );
        assert_eq!(
            chain.open(catena::open::Sharing::Locked).unwrap_err().kind(),
            Unsupported
        );
    }))
}

fn fifo(dir: &Path, name: &str) {
    rustix::fs::mknodat(CWD, dir.join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn policy(dir: &Path, text: &str) -> Policy {
    Policy::parse("p.toml", &text.replace("DIR", &dir.display().to_string())).unwrap()
}

pub fn references() -> Vec<Row> {
    let mut rows = special();
    rows.extend(vec![
        to(
            "a json: reference to a file of the host, in the format of the overlay",
            br#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/etc/passwd"}}"#,
            b"qcow2",
            Broken(InvalidFormat, "not in qcow2 format"),
        ),
        to(
            "a json: reference with file.driver",
            br#"json:{"file.driver":"nbd","file.host":"evil.test","file.port":"10809"}"#,
            b"raw",
            elsewhere(),
        ),
        to(
            "the same without a format",
            br#"json:{"file.driver":"nbd","file.host":"evil.test"}"#,
            b"",
            Broken(FormatUnknown, "was not specified"),
        ),
        to(
            "a json: reference of a thousand brackets",
            &[b"json:".as_slice(), &[b'['; 1000]].concat(),
            b"raw",
            Broken(BadReference, ""),
        ),
        to(
            "a json: reference to a driver that writes",
            br#"json:{"driver":"blkdebug","image":"/etc/passwd"}"#,
            b"raw",
            Broken(BadReference, ""),
        ),
        to(
            "a json: reference under a strict policy",
            br#"json:{"driver":"file","filename":"base"}"#,
            b"raw",
            Broken(Refused, "json: reference"),
        )
        .under(|_| Policy::strict()),
        to(
            "an NBD server under a strict policy",
            b"nbd://evil.test",
            b"raw",
            Broken(Refused, "uses nbd"),
        )
        .under(|_| Policy::strict()),
        to("an NBD server", b"nbd:evil.test:10809", b"raw", elsewhere()),
        to(
            "a descriptor by number",
            b"fd:3",
            b"raw",
            Broken(BadReference, "fd"),
        ),
        to("a command", b"exec:reboot", b"raw", Broken(BadReference, "exec")),
        to(
            "a name with a NUL in it",
            b"gone\0/etc/passwd",
            b"raw",
            Broken(NotFound, "gone'"),
        ),
        Row::made(
            "a name that is not UTF-8",
            |dir| {
                use std::os::unix::ffi::OsStrExt;
                std::fs::write(dir.join(std::ffi::OsStr::from_bytes(b"b\xff\xfe")), [7; 4096]).unwrap();
                write(dir, "top", &over(b"b\xff\xfe", b"raw"));
            },
            Reads(vec![7; 4096]),
        ),
        to(
            "a protocol that is not UTF-8",
            b"n\xff:x",
            b"raw",
            Broken(BadReference, "UTF-8"),
        ),
        to(
            "a name of dots",
            b"../../../../../../../../etc/shadow-of-nothing",
            b"raw",
            Broken(NotFound, "No such file"),
        ),
        to(
            "credentials",
            b"https://me:secret@evil.test/a",
            b"raw",
            Expected::Seen(Box::new(|chain| {
                assert!(
                    matches!(chain.end, End::OpenEnded(OpenEnd::Credentials(_))),
                    "{:?}",
                    chain.end
                );
            })),
        ),
    ]);
    rows.extend(data_files());
    rows
}

/// Names of things that are no image: opening some of them would wait for ever, or do something.
fn special() -> Vec<Row> {
    vec![
        to("standard input", b"/dev/stdin", b"raw", Broken(Unsupported, "")),
        to("an endless device", b"/dev/zero", b"raw", Broken(Unsupported, "")),
        to("a terminal", b"/dev/ptmx", b"raw", Broken(Unsupported, "")),
        to(
            "the process's own memory",
            b"/proc/self/mem",
            b"raw",
            Reads(vec![0; 4096]),
        ),
        Row::made(
            "a FIFO",
            |dir| {
                fifo(dir, "pipe");
                write(dir, "top", &over(b"pipe", b"raw"));
            },
            Broken(Unsupported, ""),
        ),
        Row::made(
            "a socket",
            |dir| {
                std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
                write(dir, "top", &over(b"socket", b"raw"));
            },
            Broken(Unsupported, ""),
        ),
        to("a folder", b"/etc", b"raw", Broken(Unsupported, "is a directory")),
        to(
            "a folder in no format",
            b"/etc",
            b"",
            Broken(Unsupported, "is a directory"),
        ),
    ]
}

fn data_files() -> Vec<Row> {
    let with_data_file = |name: &[u8]| {
        let image = empty_with(|options| options.data_file = Some((name.to_vec(), false)));
        mapped_in(image, COPIED)
    };
    let image = |name, file: &[u8], expected| Row::image(name, with_data_file(file), expected);
    vec![
        image(
            "a data file that is a terminal",
            b"/dev/ptmx",
            Unreadable(Unsupported, ""),
        ),
        image(
            "a data file that is a folder",
            b"/etc",
            Unreadable(Unsupported, ""),
        ),
        image(
            "a data file that is a server",
            b"nbd://evil.test",
            Unreadable(Unsupported, "not on this host"),
        ),
        image("a data file that is the image", b"top", Unreadable(Loop, "")),
        image(
            "a data file under a strict policy",
            b"data",
            Unreadable(Refused, "does not allow"),
        )
        .under(|_| Policy::strict()),
        Row::made(
            "a data file that is a FIFO",
            move |dir| {
                fifo(dir, "pipe");
                write(dir, "top", &with_data_file(b"pipe"));
            },
            Unreadable(Unsupported, ""),
        ),
    ]
}

/// Small images: a chain of thousands of them takes a few megabytes.
fn small(backing: &str) -> Vec<u8> {
    empty_with(|options| {
        options.cluster_bits = catena_format::qcow2::ClusterBits::new(9).unwrap();
        options.virtual_size = 4096;
        options.backing = (!backing.is_empty()).then(|| (backing.as_bytes().to_vec(), b"qcow2".to_vec()));
    })
}

fn chain_of(dir: &Path, layers: usize) {
    for layer in 1..layers {
        let backing = if layer + 1 == layers {
            String::new()
        } else {
            format!("{}", layer + 1)
        };
        write(dir, &layer.to_string(), &small(&backing));
    }
    write(dir, "top", &small("1"));
}

/// A secret beside the one folder that references may lead into.
fn folder_policy(name: &'static str, reference: &'static str, expected: Expected) -> Row {
    let make = move |dir: &Path| {
        std::fs::create_dir(dir.join("allowed")).unwrap();
        write(dir, "secret", b"secret");
        std::os::unix::fs::symlink("../secret", dir.join("allowed/link")).unwrap();
        write(dir, "allowed/overlay", &over(reference.as_bytes(), b"raw"));
        write(dir, "top", &over(b"allowed/overlay", b"qcow2"));
    };
    Row::made(name, make, expected).under(|dir| policy(dir, "[reach]\nfolders = ['DIR/allowed']"))
}

pub fn long() -> Vec<Row> {
    vec![
        to(
            "a loop of one",
            b"top",
            b"qcow2",
            Broken(Loop, "self-referential"),
        ),
        Row::made(
            "a loop of two",
            |dir| {
                write(dir, "other", &over(b"top", b"qcow2"));
                write(dir, "top", &over(b"other", b"qcow2"));
            },
            Broken(Loop, "self-referential"),
        ),
        Row::made(
            "a loop by way of a symbolic link",
            |dir| {
                write(dir, "top", &over(b"link", b"qcow2"));
                std::os::unix::fs::symlink("top", dir.join("link")).unwrap();
            },
            Broken(Loop, "self-referential"),
        ),
        Row::made(
            "a loop by way of a hard link",
            |dir| {
                write(dir, "top", &over(b"link", b"qcow2"));
                std::fs::hard_link(dir.join("top"), dir.join("link")).unwrap();
            },
            Broken(Loop, "self-referential"),
        ),
        Row::made(
            "a link to itself",
            |dir| {
                write(dir, "top", &over(b"link", b"qcow2"));
                std::os::unix::fs::symlink("link", dir.join("link")).unwrap();
            },
            Broken(catena::ErrorKind::Io, "symbolic links"),
        ),
        Row::made("300 layers", |dir| chain_of(dir, 300), seen(300, |_| ())),
        Row::made(
            "300 layers where 200 are allowed",
            |dir| chain_of(dir, 300),
            Broken(TooDeep, "too deeply nested"),
        )
        .under(|dir| policy(dir, "[reach]\ndepth = 200")),
        Row::made(
            "10,001 layers",
            |dir| chain_of(dir, 10_001),
            Broken(TooDeep, "too deeply nested"),
        ),
        Row::made(
            "a raw disk of 8 TiB without a byte in it",
            |dir| {
                let file = std::fs::File::create(dir.join("base")).unwrap();
                file.set_len(8 << 40).unwrap();
                write(dir, "top", &over(b"base", b"raw"));
            },
            Reads(vec![0; 4096]),
        ),
        Row::made(
            "a disk of a pebibyte over a small one",
            |dir| {
                write(dir, "base", &mapped(COPIED | DATA as u64));
                let bytes = with32(with32(over(b"base", b"qcow2"), 20, 12), 36, 4 << 20);
                write(dir, "top", &with64(bytes, 24, 4 << 40));
            },
            Reads(vec![0x5a; 4096]),
        ),
        folder_policy(
            "a link that leads out of the allowed folder",
            "link",
            Broken(Refused, "outside the folders"),
        ),
        folder_policy(
            "dots that lead out of the allowed folder",
            "../secret",
            Broken(Refused, "outside the folders"),
        ),
        Row::image(
            "an empty file",
            Vec::new(),
            seen(1, |chain| assert_eq!(chain.layers[0].format, Format::Raw)),
        ),
        Row::image("an image without a base", empty(), seen(1, |_| ())),
    ]
}
