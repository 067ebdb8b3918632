//! Images made to deceive or to exhaust: each is refused with the right kind of error, or seen for what it is, within
//! 64 MiB of memory and a second of work, and never with a panic.
//!
//! The tables are in [`qcow2`], [`foreign`] and [`chains`]. Every qcow2 of one file is also given to QEMU, opened for
//! reading and without its backing image, so that it is known where the two differ. Catena refuses, and QEMU accepts:
//!
//! * a header extension that occurs twice, of which QEMU takes the last;
//! * a backing file name that lies in the header itself;
//! * snapshot tables that go on past the end of the file, where QEMU sees zeros. Only listing the snapshots is refused.
//!
//! Catena accepts, and QEMU refuses:
//!
//! * a missing refcount table, damaged snapshots or bitmaps, and encryption without its header: the guest's bytes do not
//!   depend on the former, and are not to be had for the latter, but what the image says can be told;
//! * a backing file name outside the first cluster: libvirt follows it, so it is followed, and told as an oddity.
#![cfg(test)]

mod chains;
mod foreign;
mod images;
mod qcow2;

use catena::open::Sharing;
use catena::{Chain, Disk, ErrorKind, ExtentKind, Format, GuestOffset, Policy, Start, detect};
use peak_alloc::PeakAlloc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory is counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const MOST_BYTES: usize = 64 << 20;
const MOST_SECONDS: f64 = 1.0;

/// What must come of an image.
pub enum Expected {
    /// Detection stops, for this reason and with these words.
    Broken(ErrorKind, &'static str),
    /// Detection comes to an end, but the disk cannot be opened or read.
    Unreadable(ErrorKind, &'static str),
    /// The chain is what the check says, and where it is complete its disk can be read.
    Seen(Box<dyn Fn(&Chain)>),
    /// The same, and these are the first bytes of the disk.
    Reads(Vec<u8>),
}

/// Whether QEMU opens and reads an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Qemu {
    /// It does.
    Accepts,
    /// It does not.
    Refuses,
    /// It is not asked: the row is about more than one file, or about detection.
    NotAsked,
}

/// A row of a table: how to make the image `top` in a folder, and what must come of it.
pub struct Row {
    name: &'static str,
    make: Box<dyn Fn(&Path)>,
    format: Option<Format>,
    policy: Box<dyn Fn(&Path) -> Policy>,
    expected: Expected,
    qemu: Qemu,
}

impl Row {
    /// Files made by a function.
    pub fn made(name: &'static str, make: impl Fn(&Path) + 'static, expected: Expected) -> Self {
        Self {
            name,
            make: Box::new(make),
            format: None,
            policy: Box::new(|_| Policy::libvirt()),
            expected,
            qemu: Qemu::NotAsked,
        }
    }

    /// One file.
    pub fn image(name: &'static str, bytes: Vec<u8>, expected: Expected) -> Self {
        Self::made(
            name,
            move |dir| std::fs::write(dir.join("top"), &bytes).unwrap(),
            expected,
        )
    }

    /// One file that the user says is a qcow2, and what QEMU makes of it.
    pub fn qcow2(name: &'static str, bytes: Vec<u8>, expected: Expected, qemu: Qemu) -> Self {
        Self {
            format: Some(Format::Qcow2),
            qemu,
            ..Self::image(name, bytes, expected)
        }
    }

    /// Under another policy than libvirt's, which may name the folder.
    pub fn under(self, policy: impl Fn(&Path) -> Policy + 'static) -> Self {
        Self {
            policy: Box::new(policy),
            ..self
        }
    }
}

/// The chain must have so many layers and end well.
pub fn seen(layers: usize, check: impl Fn(&Chain) + 'static) -> Expected {
    Expected::Seen(Box::new(move |chain| {
        assert!(chain.broken().is_none(), "{:?}", chain.broken());
        assert_eq!(chain.layers.len(), layers);
        check(chain);
    }))
}

/// Reads pieces of the disk: its start, its end, and what lies about its middle; maps all three.
fn read(disk: &dyn Disk) -> catena::Result<Vec<u8>> {
    let size = disk.size();
    let piece = size.min(128 << 10);
    let mut start = Vec::new();
    for offset in [0, size / 2, size.saturating_sub(piece)] {
        let piece = usize::try_from(piece.min(size - offset)).unwrap();
        let mut bytes = vec![0xaa; piece];
        disk.read_at(&mut bytes, GuestOffset(offset))?;
        disk.extents(GuestOffset(offset), GuestOffset(size))?;
        if offset == 0 {
            start = bytes;
        }
    }
    Ok(start)
}

fn open_and_read(chain: &Chain) -> catena::Result<Vec<u8>> {
    read(&chain.open(Sharing::Locked)?)
}

/// Why the outcome is not the expected one.
fn judge(row: &Row, dir: &Path) -> Result<(), String> {
    let chain = detect(&Start::at(dir.join("top"), row.format), &(row.policy)(dir));
    let is = |error: &catena::Error, kind: ErrorKind, words: &str| {
        if error.kind() == kind && error.full().contains(words) {
            return Ok(());
        }
        Err(format!("{:?}: {}", error.kind(), error.full()))
    };
    let complete = || match chain.broken() {
        Some(broken) => Err(format!(
            "broken: {:?}: {}",
            broken.error.kind(),
            broken.error.full()
        )),
        None => Ok(()),
    };
    match &row.expected {
        Expected::Broken(kind, words) => {
            let broken = chain.broken().ok_or_else(|| {
                let layers = chain.layers.iter().map(|layer| layer.format);
                format!("not broken: {:?}, {:?}", layers.collect::<Vec<_>>(), chain.end)
            })?;
            is(&broken.error, *kind, words)?;
            match chain.open(Sharing::Locked) {
                Ok(_) => Err("a broken chain opens".to_owned()),
                Err(error) => is(&error, *kind, words),
            }
        }
        Expected::Unreadable(kind, words) => {
            complete()?;
            match open_and_read(&chain) {
                Ok(bytes) => Err(format!("can be read: {:x?}", &bytes[..16])),
                Err(error) => is(&error, *kind, words),
            }
        }
        Expected::Seen(check) => {
            check(&chain);
            if matches!(chain.end, catena::End::Terminated) {
                // What the data is, or that it cannot be read, is not the row's matter.
                let _ = open_and_read(&chain);
            }
            Ok(())
        }
        Expected::Reads(bytes) => {
            complete()?;
            let read = open_and_read(&chain).map_err(|error| error.full())?;
            if !read.starts_with(bytes) {
                return Err(format!("reads {:x?}", &read[..bytes.len().min(64)]));
            }
            Ok(())
        }
    }
}

fn seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn run(rows: impl FnOnce() -> Vec<Row>) {
    // Making the images takes memory too.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failures = Vec::new();
    allow_many_files();
    for row in rows() {
        let dir = tempfile::tempdir().unwrap();
        (row.make)(dir.path());
        MEMORY.reset_peak_usage();
        let (before, since) = (MEMORY.current_usage(), seconds());
        let outcome = catch_unwind(AssertUnwindSafe(|| judge(&row, dir.path())));
        let (bytes, took) = (MEMORY.peak_usage() - before, seconds() - since);
        let mut fail = |why: String| failures.push(format!("{}: {why}", row.name));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(why)) => fail(why),
            Err(_) => fail("a panic, said above".to_owned()),
        }
        if bytes > MOST_BYTES || took > MOST_SECONDS {
            fail(format!("takes {bytes} bytes and {took} seconds"));
        }
        let theirs = if row.qemu == Qemu::NotAsked {
            row.qemu
        } else {
            ask_qemu(dir.path())
        };
        if theirs != row.qemu {
            fail(format!("QEMU {theirs:?} it"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A chain keeps a file open for each layer.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
}

/// Whether QEMU opens the image and reads the first cluster's worth of its disk.
fn ask_qemu(dir: &Path) -> Qemu {
    let image = r#"json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"top"}}"#;
    let output = Command::new("qemu-io")
        .current_dir(dir)
        .args(["-r", "-c", "read 0 4k", image])
        .output()
        .expect("these tests need qemu-io");
    if output.status.success() {
        Qemu::Accepts
    } else {
        Qemu::Refuses
    }
}

#[test]
fn hostile_qcow2_headers_are_refused_or_seen_for_what_they_are() {
    run(qcow2::headers);
}

#[test]
fn hostile_qcow2_tables_are_read_as_damaged_and_never_followed_blindly() {
    run(qcow2::tables);
}

#[test]
fn hostile_images_of_other_formats_are_refused_or_seen_for_what_they_are() {
    run(foreign::rows);
}

#[test]
fn hostile_references_open_nothing_that_they_should_not() {
    run(chains::references);
}

#[test]
fn vast_disks_with_nothing_in_them_are_walked_over_in_no_time() {
    use catena::{Contributions, Extents};
    let quarter = || {
        vec![Row::qcow2(
            "a quarter of an exbibyte, from end to end",
            images::with64(qcow2::exbibyte(), 24, 1 << 58),
            seen(1, |chain| {
                let disk = chain.open(Sharing::Locked).unwrap();
                let extents: Vec<_> = Extents::of(&disk).collect::<Result<_, _>>().unwrap();
                assert_eq!((extents.len(), extents[0].len), (1, 1 << 58));
            }),
            Qemu::Accepts,
        )]
    };
    run(quarter);
    let pebibyte = || {
        vec![Row::made(
            "a pebibyte over a mebibyte, from end to end",
            |dir| {
                std::fs::write(dir.join("base"), images::empty()).unwrap();
                std::fs::write(dir.join("top"), qcow2::pebibyte_over(b"base")).unwrap();
            },
            seen(2, |chain| {
                let disk = chain.open(Sharing::Locked).unwrap();
                // The last that was asked: the base, and behind its end the top.
                let asked: Vec<_> = Extents::of(&disk).map(|extent| extent.unwrap()).collect();
                assert!(asked.iter().all(|extent| extent.kind == ExtentKind::Unallocated));
                assert_eq!([asked[0].layer, asked[1].layer], [1, 0]);
                let counted = Contributions::of_chain(chain, Sharing::Locked, u64::MAX).unwrap();
                assert_eq!((counted.data(), counted.open), (0, 1 << 50));
            }),
        )]
    };
    run(pebibyte);
}

#[test]
fn chains_that_are_endless_or_nearly_so_end() {
    run(chains::long);
}
