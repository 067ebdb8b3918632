//! Bundles there and back: chains of every kind, every point restored, and every kind of damage found.
#![cfg(test)]

use catena::open::Sharing;
use catena::ops::bundle::export::{self, Exported};
use catena::ops::bundle::import::{self, Bundle, Imported};
use catena::ops::{LayerChoice, Observer, Silent};
use catena::{ErrorKind, Format, Policy, Result, Start, detect};
use catena_testkit::images::{self, Features};
use catena_testkit::proptest::prelude::*;
use catena_testkit::{Folder, qemu};
use std::io::Cursor;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

fn plan(image: &Path, since: Option<&Path>, compress: bool) -> Result<export::Plan> {
    let request = export::Request {
        start: Start::at(image, None),
        since: since.map(|since| LayerChoice::Path(since.to_owned())),
        sharing: Sharing::Locked,
        compress,
    };
    export::plan(&request, &Policy::default(), &Silent)
}

fn exported(image: &Path, since: Option<&Path>, compress: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Exported { bytes: count, .. } = plan(image, since, compress)
        .unwrap()
        .write(&mut bytes, &Silent)
        .unwrap();
    assert_eq!(count, bytes.len() as u64);
    bytes
}

fn bundles(all: &[Vec<u8>]) -> Vec<Bundle<'_>> {
    let bundle = |bytes| Bundle {
        name: "bundle".to_owned(),
        input: Box::new(Cursor::new(bytes)),
    };
    all.iter().map(bundle).collect()
}

fn request(folder: &Path, at: Option<&str>, onto: Option<&Path>) -> import::Request {
    import::Request {
        folder: folder.to_owned(),
        at: at.map(str::to_owned),
        onto: onto.map(|onto| Start::at(onto, None)),
    }
}

fn imported(all: &[Vec<u8>], folder: &Path, at: Option<&str>, onto: Option<&Path>) -> Result<Imported> {
    import::import(
        &request(folder, at, onto),
        bundles(all),
        &Policy::default(),
        &Silent,
    )
}

/// The files of a folder, the hidden ones among them.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn same_view(first: &Path, second: &Path, format: &str) -> bool {
    let [first, second] = [first, second].map(|path| path.display().to_string());
    let compared = qemu::img(["compare", "-q", "-f", format, "-F", format, &first, &second]);
    compared.inspect_err(|error| eprintln!("{error:#}")).is_ok()
}

fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chains_come_back_as_they_were_to_every_point(
        chain in images::chains(Features { huge: false, ..Features::all() }, 1..=4),
        compress in any::<bool>(),
        at in any::<prop::sample::Index>(),
    ) {
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        prop_assume!(detect(&Start::at(&built.top, None), &Policy::default()).check_complete().is_ok());
        let full = exported(&built.top, None, compress);
        prop_assert!(full == exported(&built.top, None, compress), "the same images make the same bundle");
        let manifests = import::verify(bundles(std::slice::from_ref(&full)), &Silent).unwrap();
        let names: Vec<_> = manifests[0].layers.iter().rev().map(|layer| layer.name.clone()).collect();
        prop_assert_eq!(manifests[0].view.is_none(), built.is_encrypted());

        // All of it, and up to some layer.
        let at = at.index(names.len());
        for (folder, first) in [("all", 0), ("some", at)] {
            let folder = dir.path().join(folder);
            let wanted = names[first].as_str();
            imported(std::slice::from_ref(&full), &folder, Some(wanted), None).unwrap();
            for (layer, name) in built.layers.iter().zip(&names).skip(first) {
                if !built.is_encrypted() {
                    prop_assert!(same_view(&layer.path, &folder.join(name), layer.format), "{name}");
                }
            }
            prop_assert!(files(&folder).iter().all(|name| !name.starts_with('.')));
            let above = names.iter().take(first).any(|name| folder.join(name).exists());
            prop_assert!(!above, "what is above was restored, too");
        }

        // The same, layer by layer.
        if built.is_encrypted() {
            return Ok(());
        }
        let mut steps = Vec::new();
        for (index, layer) in built.layers.iter().enumerate().rev() {
            let below = built.layers.get(index + 1).map(|below| below.path.as_path());
            steps.push(exported(&layer.path, below, compress));
        }
        let folder = dir.path().join("steps");
        // Two layers may have the same name, in folders of their own.
        let paths: std::collections::BTreeSet<_> = built.layers.iter().map(|layer| name_of(&layer.path)).collect();
        let come = imported(&steps, &folder, None, None);
        if paths.len() < built.layers.len() {
            prop_assert_eq!(come.unwrap_err().kind(), ErrorKind::Conflict);
            return Ok(());
        }
        prop_assert_eq!(come.unwrap().view, manifests[0].view.clone());
        for layer in &built.layers {
            prop_assert!(same_view(&layer.path, &folder.join(name_of(&layer.path)), layer.format));
        }
    }
}

/// base.raw, which has a hole, <- monday.qcow2 <- tuesday.qcow2: small, so that every byte of a bundle can be tried.
fn small() -> Folder {
    let folder = Folder::new();
    folder.img("create -q -f raw base.raw 256k");
    folder.io("raw", "base.raw", &["write -P 1 0 1k", "write -P 2 200k 1k"]);
    folder.img("create -q -f qcow2 -o cluster_size=512 -b base.raw -F raw monday.qcow2");
    folder.io("qcow2", "monday.qcow2", &["write -P 3 10k 1k"]);
    folder.img("create -q -f qcow2 -o cluster_size=512 -b monday.qcow2 -F qcow2 tuesday.qcow2");
    folder.io("qcow2", "tuesday.qcow2", &["write -P 4 20k 1k"]);
    folder
}

fn verified(bytes: &[u8]) -> Result<()> {
    import::verify(bundles(&[bytes.to_vec()]), &Silent).map(drop)
}

#[test]
fn damage_is_found_wherever_it_is() {
    let folder = small();
    let bundle = exported(&folder.file("tuesday.qcow2"), None, false);
    verified(&bundle).unwrap();
    let mut damaged = bundle.clone();
    for at in 0..bundle.len() {
        for flip in [1, 0x80] {
            damaged[at] ^= flip;
            let refused = verified(&damaged).unwrap_err();
            let kind = refused.kind();
            assert!(
                matches!(
                    kind,
                    ErrorKind::Corrupt | ErrorKind::InvalidFormat | ErrorKind::Unsupported
                ),
                "{at}: {}",
                refused.full()
            );
            damaged[at] ^= flip;
        }
    }
    // Of a compressed one, it is found or does not matter.
    let bundle = exported(&folder.file("tuesday.qcow2"), None, true);
    let restored = |bytes: &[u8], name: &str| imported(&[bytes.to_vec()], &folder.file(name), None, None);
    restored(&bundle, "whole").unwrap();
    let mut damaged = bundle.clone();
    for at in 0..bundle.len() {
        damaged[at] ^= 0x10;
        if verified(&damaged).is_ok() {
            restored(&damaged, "damaged").unwrap();
            for name in files(&folder.file("whole")) {
                let [first, second] =
                    ["whole", "damaged"].map(|dir| std::fs::read(folder.file(dir).join(&name)));
                assert!(first.unwrap() == second.unwrap(), "{at}");
            }
            std::fs::remove_dir_all(folder.file("damaged")).unwrap();
        }
        damaged[at] ^= 0x10;
    }
}

#[test]
fn a_bundle_that_is_cut_off_restores_nothing() {
    let folder = small();
    for compress in [false, true] {
        let bundle = exported(&folder.file("tuesday.qcow2"), None, compress);
        let target = folder.file("restored");
        for len in (0..bundle.len()).step_by(197).chain([bundle.len() - 1]) {
            let cut = bundle[..len].to_vec();
            let refused = imported(&[cut], &target, None, None).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Corrupt, "{len}: {}", refused.full());
            assert!(!target.exists());
        }
        let longer = [bundle.as_slice(), &[0]].concat();
        assert_eq!(verified(&longer).unwrap_err().kind(), ErrorKind::InvalidFormat);
    }
}

/// Stops at the nth time it is asked.
struct StopAt(u32, AtomicU32);

impl Observer for StopAt {
    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }

    fn cancelled(&self) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed) >= self.0
    }
}

#[test]
fn what_is_stopped_leaves_nothing() {
    let folder = small();
    let (image, bundle) = (folder.file("tuesday.qcow2"), folder.file("full.tar"));
    let plan = plan(&image, None, false).unwrap();
    let before = files(folder.path());
    let mut stopped = 0;
    while let Err(error) = plan.save(&bundle, &StopAt(stopped, AtomicU32::new(0))) {
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(files(folder.path()), before);
        stopped += 1;
    }
    assert!(stopped > 3, "{stopped}");
    let bytes = [std::fs::read(&bundle).unwrap()];
    let target = folder.file("restored");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("other"), "").unwrap();
    for nth in 0..stopped - 1 {
        let observer = StopAt(nth, AtomicU32::new(0));
        let request = request(&target, None, None);
        let error = import::import(&request, bundles(&bytes), &Policy::default(), &observer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(files(&target), ["other"]);
    }
    imported(&bytes, &target, None, None).unwrap();
    assert_eq!(
        files(&target),
        ["base.raw", "monday.qcow2", "other", "tuesday.qcow2"]
    );
    // What is there is not replaced, and nothing else is left.
    let refused = imported(&bytes, &target, None, None).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(files(&target).len(), 4);
    assert_eq!(plan.save(&bundle, &Silent).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn what_is_above_a_layer_comes_back_onto_an_image_that_shows_the_same() {
    let folder = small();
    let above = exported(
        &folder.file("tuesday.qcow2"),
        Some(&folder.file("monday.qcow2")),
        false,
    );
    let target = folder.file("restored");
    let needs = imported(std::slice::from_ref(&above), &target, None, None).unwrap_err();
    assert_eq!(needs.kind(), ErrorKind::Conflict);
    // The same in another format and place will do; anything else will not.
    folder.img("convert -O raw monday.qcow2 flat.raw");
    for (base, good) in [("monday.qcow2", true), ("flat.raw", true), ("base.raw", false)] {
        let come = imported(
            std::slice::from_ref(&above),
            &target,
            None,
            Some(&folder.file(base)),
        );
        assert_eq!(come.is_ok(), good, "{come:?}");
        if let Err(error) = come {
            assert_eq!(error.kind(), ErrorKind::ViewWouldChange);
            assert!(!target.exists());
            continue;
        }
        let restored = target.join("tuesday.qcow2");
        assert!(same_view(&folder.file("tuesday.qcow2"), &restored, "qcow2"));
        let chain = detect(&Start::at(&restored, Some(Format::Qcow2)), &Policy::default());
        chain.check_complete().unwrap();
        assert_eq!(chain.layers[1].path().unwrap(), folder.file(base));
        std::fs::remove_dir_all(&target).unwrap();
    }
    // Beside its base, it records its name alone.
    std::fs::create_dir(&target).unwrap();
    std::fs::copy(folder.file("flat.raw"), target.join("flat.raw")).unwrap();
    let come = imported(&[above], &target, None, Some(&target.join("flat.raw"))).unwrap();
    assert_eq!(come.onto.as_deref(), Some("flat.raw"));
    assert!(same_view(
        &folder.file("tuesday.qcow2"),
        &target.join("tuesday.qcow2"),
        "qcow2"
    ));
}

#[test]
fn bundles_that_do_not_follow_each_other_are_refused() {
    let folder = small();
    let base = exported(&folder.file("base.raw"), None, false);
    let tuesday = exported(
        &folder.file("tuesday.qcow2"),
        Some(&folder.file("monday.qcow2")),
        false,
    );
    let target = folder.file("restored");
    let refused = imported(&[base.clone(), tuesday], &target, None, None).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ViewWouldChange);
    let twice = imported(&[base.clone(), base.clone()], &target, None, None).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Conflict);
    let unknown = imported(std::slice::from_ref(&base), &target, Some("other"), None).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let onto = imported(&[base], &target, None, Some(&folder.file("base.raw"))).unwrap_err();
    assert_eq!(onto.kind(), ErrorKind::Conflict);
    assert!(!target.exists());
}
