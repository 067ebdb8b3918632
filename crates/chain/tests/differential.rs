//! Generated chains of every feature: what QEMU reads, maps and tells of them is what Catena reads, maps and tells, and
//! what libvirt detects of a running guest's disk is what Catena detects.
#![cfg(test)]

use anyhow::{Context, Result, ensure};
use catena::open::Sharing;
use catena::{
    Chain, Disk, End, ErrorKind, Extent, ExtentKind, Format, GuestOffset, Policy, Stack, Start, detect,
};
use catena_testkit::images::{self, Built, Features};
use catena_testkit::oracle::{self, MapExtent};
use catena_testkit::proptest::prelude::*;
use catena_testkit::proptest::test_runner::TestCaseResult;
use std::path::Path;

/// A few dozen for every run; more by `PROPTEST_CASES`.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn check(result: Result<()>) -> TestCaseResult {
    result.map_err(|error| TestCaseError::fail(format!("{error:#}")))
}

/// Formats that are not recorded may be probed here: nobody hostile made these images.
fn found(built: &Built, dir: &Path) -> Chain {
    let root = dir.canonicalize().unwrap();
    let policy = Policy::parse("test", &format!("[trust]\nroots = ['{}']", root.display())).unwrap();
    let format = Format::from_qemu(built.layers[0].format);
    detect(&Start::at(&built.top, format), &policy)
}

/// All extents of a disk, and that they have neither gaps nor overlaps.
fn extents(disk: &Stack) -> Result<Vec<Extent>> {
    let end = GuestOffset(disk.size());
    let (mut at, mut all) = (GuestOffset(0), Vec::new());
    while at < end {
        for extent in disk.extents(at, end)? {
            ensure!(extent.start == at && extent.len > 0, "a gap before {extent:?}");
            at = extent.end();
            all.push(extent);
        }
    }
    ensure!(at == end, "the map goes on to {at}, the disk ends at {end}");
    Ok(all)
}

fn reads_the_same(built: &Built, dir: &Path) -> Result<()> {
    let disk = found(built, dir).open(Sharing::Locked)?;
    let guest = oracle::guest(built)?;
    ensure!(
        disk.size() == guest.len(),
        "size {} instead of {}",
        disk.size(),
        guest.len()
    );
    let differs = guest.first_difference(|offset, buffer| disk.read_at(buffer, GuestOffset(offset)))?;
    ensure!(
        differs.is_none(),
        "reads differently at {:#x}",
        differs.unwrap_or_default()
    );
    Ok(())
}

/// Encrypted bytes are an error, never ciphertext; everything else reads as ever.
fn gives_no_ciphertext(built: &Built, dir: &Path) -> Result<()> {
    let disk = match found(built, dir).open(Sharing::Locked) {
        Ok(disk) => disk,
        Err(error) if error.kind() == ErrorKind::Encrypted => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let guest = oracle::guest(built)?;
    for extent in extents(&disk)? {
        let len = usize::try_from(extent.len.min(1 << 20))?;
        let (mut ours, mut theirs) = (vec![0xa5; len], vec![0; len]);
        match disk.read_at(&mut ours, extent.start) {
            Ok(()) => {
                guest.read_at(extent.start.0, &mut theirs)?;
                ensure!(ours == theirs, "reads differently at {}", extent.start);
            }
            Err(error) => {
                ensure!(error.kind() == ErrorKind::Encrypted, "{error}");
                ensure!(matches!(extent.kind, ExtentKind::Encrypted { .. }), "{extent:?}");
            }
        }
    }
    Ok(())
}

fn maps_the_same(built: &Built, dir: &Path) -> Result<()> {
    let disk = found(built, dir).open(Sharing::Locked)?;
    let ours = extents(&disk)?;
    let theirs = oracle::map(built)?;
    let mut ours = ours.iter().peekable();
    for their in &theirs {
        let (start, end) = (GuestOffset(their.start), GuestOffset(their.start + their.length));
        while let Some(our) = ours.peek() {
            if let Some(part) = our.clip(start, end) {
                compare(&part, their).with_context(|| format!("{part:?} is for QEMU {their:?}"))?;
            }
            if our.end() > end {
                break;
            }
            ours.next();
        }
    }
    ensure!(ours.next().is_none(), "our map goes on");
    Ok(())
}

fn compare(our: &Extent, their: &MapExtent) -> Result<()> {
    let skipped = our.start.0 - their.start;
    match our.kind {
        ExtentKind::Data { offset, .. } => {
            ensure!(their.data && !their.compressed, "data");
            ensure!(
                their.offset.is_some_and(|their| their + skipped == offset.0),
                "offset"
            );
        }
        ExtentKind::Compressed { .. } => ensure!(their.data && their.compressed, "compressed"),
        // QEMU does not always ask the file system whether an allocated cluster is a hole.
        ExtentKind::Zero { offset: Some(offset) } if their.data => {
            ensure!(
                their.offset.is_some_and(|their| their + skipped == offset.0),
                "offset"
            );
        }
        ExtentKind::Zero { .. } => ensure!(their.zero && their.present, "zero"),
        ExtentKind::Unallocated => ensure!(their.zero && !their.data && !their.present, "unallocated"),
        _ => ensure!(false, "kind"),
    }
    ensure!(u64::from(our.layer) == their.depth, "layer");
    Ok(())
}

fn tells_the_same(built: &Built, dir: &Path) -> Result<()> {
    let chain = found(built, dir);
    ensure!(matches!(chain.end, End::Terminated), "{:?}", chain.end);
    let theirs = oracle::info_chain(built)?;
    ensure!(
        theirs.len() == chain.layers.len(),
        "{} layers instead of {}",
        chain.layers.len(),
        theirs.len()
    );
    for (our, their) in chain.layers.iter().zip(&theirs) {
        ensure!(our.format.as_str() == their.format, "format of {their:?}");
        // QEMU counts whole sectors.
        let size = our.virtual_size().map(|size| size.next_multiple_of(512));
        ensure!(size == Some(their.virtual_size), "size of {their:?}: {size:?}");
        ensure!(
            our.description.cluster_size == their.cluster_size,
            "cluster size of {their:?}"
        );
        ensure!(
            our.encryption().is_some() == their.encrypted,
            "encryption of {their:?}"
        );
        let backing = our.description.backing.as_ref();
        ensure!(
            backing.map(|backing| &backing.name) == their.backing_filename.as_ref(),
            "backing of {their:?}"
        );
        ensure!(
            backing.and_then(|backing| backing.format.as_ref()) == their.backing_filename_format.as_ref(),
            "backing format of {their:?}"
        );
        let snapshots = our.header.as_ref().map_or(0, |header| header.snapshot_count);
        ensure!(
            usize::try_from(snapshots)? == their.snapshots.len(),
            "snapshots of {their:?}"
        );
    }
    Ok(())
}

fn open_features() -> Features {
    Features {
        encryption: false,
        huge: false,
        ..Features::all()
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn a_chain_reads_as_qemu_reads_it(spec in images::chains(open_features(), 1..=6)) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        check(reads_the_same(&built, dir.path()))?;
        check(maps_the_same(&built, dir.path()))?;
        check(tells_the_same(&built, dir.path()))?;
    }

    #[test]
    fn an_image_reads_as_qemu_reads_it(spec in images::images(open_features())) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.alone().build(dir.path()).unwrap();
        check(reads_the_same(&built, dir.path()))?;
        check(maps_the_same(&built, dir.path()))?;
        check(tells_the_same(&built, dir.path()))?;
    }
}

proptest! {
    // QEMU needs minutes to read or map the largest disks with the smallest clusters.
    #![proptest_config(config(6))]

    #[test]
    fn a_chain_of_huge_disks_is_told_as_qemu_tells_it(spec in images::chains(Features { huge: true, ..open_features() }, 1..=3)) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        check(tells_the_same(&built, dir.path()))?;
    }
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn an_encrypted_chain_gives_no_ciphertext(spec in images::chains(Features { huge: false, ..Features::all() }, 1..=3)) {
        let dir = catena_testkit::scratch().unwrap();
        let built = spec.build(dir.path()).unwrap();
        check(gives_no_ciphertext(&built, dir.path()))?;
    }
}
