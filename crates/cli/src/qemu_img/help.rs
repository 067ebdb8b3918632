//! `--help` and `--version`.

use super::program::{Program, Result, VERSION, print as output};

/// The line that scripts read the version from.
pub fn version() -> String {
    format!(
        "qemu-img version {VERSION} (catena {})\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// A subcommand: its name, how it is called, and what it does.
type Entry = (&'static str, &'static [&'static str], &'static str);

const COMMANDS: &[Entry] = &[
    (
        "amend",
        &["[-f FMT | --image-opts] [-t CACHE] [--force] [-p] [-q] [--object OBJDEF] -o OPTIONS FILENAME"],
        "changes format options of an image that exists",
    ),
    (
        "bench",
        &[
            "[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH] [-o OFFSET] [-s BUFFER_SIZE] [-S STEP_SIZE] [-i AIO] [-n] [-q] [-U]",
            "[-w [--pattern PATTERN] [--flush-interval INTERVAL [--no-drain]]] FILENAME",
        ],
        "times reads or writes of an image",
    ),
    (
        "bitmap",
        &[
            "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-f FMT | --image-opts]",
            "[-b SOURCE_FILE [-F SOURCE_FMT]] [-g SIZE] [--object OBJDEF] FILENAME BITMAP",
        ],
        "changes a persistent bitmap",
    ),
    (
        "check",
        &[
            "[-f FMT | --image-opts] [-T CACHE] [-r leaks|all] [-U] [-q] [--output human|json] [--object OBJDEF] FILENAME",
        ],
        "looks for damage, and mends it with -r",
    ),
    (
        "commit",
        &["[-f FMT | --image-opts] [-t CACHE] [-b BASE] [-d] [-r RATE] [-p] [-q] [--object OBJDEF] FILENAME"],
        "writes what an image holds into an image below it",
    ),
    (
        "compare",
        &[
            "[--image-opts | [-f FMT] [-F FMT]] [-T CACHE] [-s] [-p] [-q] [-U] [--object OBJDEF] FILENAME1 FILENAME2",
        ],
        "tells whether two images show their guests the same",
    ),
    (
        "convert",
        &[
            "[-f FMT | --image-opts] [-T CACHE] [-l SNAPSHOT] [-O FMT | --target-image-opts] [-o OPTIONS] [-t CACHE] [-n]",
            "[-B BACKING [-F BACKING_FMT]] [-c] [-S SPARSE_SIZE] [--target-is-zero] [--bitmaps [--skip-broken-bitmaps]]",
            "[-m PARALLEL] [-W] [-C] [-r RATE] [--salvage] [-p] [-q] [-U] [--object OBJDEF] FILENAME... OUTPUT",
        ],
        "copies images into a new one",
    ),
    (
        "create",
        &["[-f FMT] [-o OPTIONS] [-b BACKING [-F BACKING_FMT]] [-u] [-q] [--object OBJDEF] FILENAME [SIZE]"],
        "makes an image",
    ),
    (
        "dd",
        &[
            "[-f FMT | --image-opts] [-O FMT] [-U] [--object OBJDEF] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
        ],
        "copies a part of an image",
    ),
    (
        "info",
        &["[-f FMT | --image-opts] [-b] [-U] [--output human|json] [--object OBJDEF] FILENAME"],
        "tells what an image says about itself, with -b also those below it",
    ),
    (
        "map",
        &[
            "[-f FMT | --image-opts] [-s OFFSET] [-l LENGTH] [-U] [--output human|json] [--object OBJDEF] FILENAME",
        ],
        "tells where the disk's bytes are",
    ),
    (
        "measure",
        &[
            "[-O FMT] [-o OPTIONS] [--output human|json] [--object OBJDEF]",
            "([-f FMT | --image-opts] [-l SNAPSHOT] [-U] FILENAME | --size SIZE)",
        ],
        "tells how large a new image would be",
    ),
    (
        "rebase",
        &[
            "[-f FMT | --image-opts] [-t CACHE] [-T CACHE] [-b BACKING [-F BACKING_FMT]] [-u] [-c] [-p] [-q] [-U] [--object OBJDEF] FILENAME",
        ],
        "puts an image on another backing image",
    ),
    (
        "resize",
        &[
            "[-f FMT | --image-opts] [--preallocation MODE] [--shrink] [-q] [--object OBJDEF] FILENAME [+|-]SIZE",
        ],
        "changes the size of a disk",
    ),
    (
        "snapshot",
        &[
            "[-f FMT | --image-opts] [-l | -a SNAPSHOT | -c SNAPSHOT | -d SNAPSHOT] [-q] [-U] [--object OBJDEF] FILENAME",
        ],
        "lists, applies, takes or deletes internal snapshots",
    ),
];

const COMMON: &str = "\
A SIZE is in bytes, or has one of the units b, k, M, G, T, P, E.
CACHE is none, writeback, writethrough, directsync or unsafe.
With --image-opts a FILENAME is a list such as driver=qcow2,file.filename=NAME.
";

/// The help of the program.
pub fn general() -> String {
    let mut text = version();
    text.push_str(
        "Works on virtual disk images as QEMU's tool of this name does.\n\nUsage:\n  qemu-img [-h | -V | -T TRACE] COMMAND [OPTIONS]\n  qemu-img COMMAND --help\n\nCommands:\n",
    );
    for (name, _, does) in COMMANDS {
        text.push_str(&format!("  {name:<9} {does}\n"));
    }
    text.push_str("\nSupported formats: raw qcow2\n");
    text
}

/// Prints the help of a subcommand.
pub fn print(program: &Program) -> Result<u8> {
    let mut text = String::new();
    for (name, calls, does) in COMMANDS.iter().filter(|(name, ..)| *name == program.command) {
        text.push_str(&format!(
            "qemu-img {name}: {does}\n\nUsage:\n  qemu-img {name} {}\n\n",
            calls.join("\n      ")
        ));
    }
    text.push_str(COMMON);
    output(&text);
    Ok(0)
}
