//! Builders and oracles for the tests of Catena.
//!
//! The builders make real images with real tools, and the oracles are those tools' answers: QEMU's for what a guest
//! sees ([`oracle`]), libvirt's for what it makes of a disk's chain ([`libvirt`]). Nothing here knows what Catena makes of
//! an image, so that no mistake can be on both sides of a comparison; of its crates only the place of bytes is used, for
//! stores that are cut off or fail ([`storage`]).
//!
//! A differential test draws a chain, builds it, and compares:
//!
//! ```
//! use catena_testkit::images::{self, Features};
//! use catena_testkit::oracle;
//! use catena_testkit::proptest::prelude::*;
//!
//! proptest! {
//!     #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]
//!     # /*
//!     #[test]
//!     # */
//!     fn reads_what_qemu_reads(chain in images::chains(Features { huge: false, ..Features::all() }, 1..=6)) {
//!         let dir = catena_testkit::scratch().unwrap();
//!         let built = chain.build(dir.path()).unwrap();
//!         let guest = oracle::guest(&built).unwrap();
//!         let mut expected = vec![0; 512];
//!         for range in guest.data().unwrap() {
//!             guest.read_at(range.start, &mut expected[..1]).unwrap();
//!             // ... and here the same range as Catena reads it from built.top.
//!         }
//!         prop_assert_eq!(oracle::map(&built).unwrap().iter().map(|extent| extent.length).sum::<u64>(), guest.len());
//!     }
//! }
//! # reads_what_qemu_reads();
//! ```

pub mod cuts;
pub mod dice;
pub mod domains;
pub mod folder;
pub mod images;
pub mod libvirt;
pub mod oracle;
pub mod qemu;
pub mod storage;

pub use dice::Dice;
pub use folder::Folder;
pub use proptest;

use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Set where a change is judged: every test does its work, or fails.
const NOTHING_LEFT_OUT: &str = "CATENA_TEST_NOTHING_LEFT_OUT";

/// Says that a test, or a part of it, cannot be done on this machine, and why.
///
/// # Panics
/// Where nothing may be left out: `CATENA_TEST_NOTHING_LEFT_OUT` is set, as `cargo xtask test` does.
pub fn not_tested(why: impl std::fmt::Display) {
    assert!(std::env::var_os(NOTHING_LEFT_OUT).is_none(), "not tested: {why}");
    eprintln!("not tested: {why}");
}

/// A temporary folder for images, in memory where there is room: every process that QEMU's tools start ends with a sync,
/// and a chain takes dozens of them.
///
/// # Errors
/// If it cannot be made.
pub fn scratch() -> Result<TempDir> {
    const MEMORY: &str = "/dev/shm";
    const ROOM: u64 = 2 << 30;
    let room = rustix::fs::statvfs(MEMORY).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if room >= ROOM
        && let Ok(dir) = tempfile::tempdir_in(MEMORY)
    {
        return Ok(dir);
    }
    tempfile::tempdir().context("a temporary folder")
}

/// A folder for what is slow to make and the same every time. It lies beside the tests that run, and goes when they are
/// cleaned.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    // target/debug/deps/test-0123456789abcdef
    let profile = program
        .parent()
        .and_then(|folder| folder.parent())
        .context("the test lies in no folder")?;
    let dir = profile.join("testkit-cache");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}
