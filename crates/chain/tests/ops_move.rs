//! Operations that move bytes, held against qemu-img: what guests see afterwards, and what becomes of them half-way.
#![cfg(test)]

use catena::ops::commit::{self, After};
use catena::ops::compare::{self, Outcome};
use catena::ops::convert::{self, Publish, Shared, Target};
use catena::ops::create::{Kind, Preallocation};
use catena::ops::measure::{self, measure};
use catena::ops::{Input, LayerChoice, Moving, Observer, OtherChildren, Silent};
use catena::{Error, ErrorKind, Format, GuestOffset, Policy, Start, detect};
use catena_format::qcow2::ClusterBits;
use catena_testkit::images::{self, ChainSpec, Features};
use catena_testkit::proptest::prelude::*;
use catena_testkit::{Folder, oracle, qemu};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Stops at the nth time it is asked.
struct StopAt {
    nth: u32,
    asked: AtomicU32,
}

impl StopAt {
    fn new(nth: u32) -> Self {
        Self {
            nth,
            asked: AtomicU32::new(0),
        }
    }
}

impl Observer for StopAt {
    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }

    fn cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.nth
    }
}

fn input(path: &Path) -> Input {
    Input::at(Start::at(path, None))
}

fn to_raw(source: &Path, target: &Path) -> convert::Request {
    convert::Request {
        sources: vec![input(source)],
        target: Target::New {
            path: target.to_owned(),
            kind: Kind::Raw,
            size: None,
            preallocation: Preallocation::Off,
            publish: Publish::Complete,
        },
        shared: Shared::Compared,
        moving: Moving::default(),
        compressed: false,
    }
}

fn convert(request: &convert::Request) -> catena::Result<()> {
    convert::plan(request, &Policy::libvirt())?.execute(&Silent)
}

/// What the guest of an image reads, as QEMU reads it, held against what is expected.
fn assert_same(dir: &Path, image: &str, format: &'static str, expected: &oracle::GuestBytes) {
    let target = qemu::Target::file(&dir.join(image), format);
    let raw = dir.join("assert.raw");
    qemu::img([
        "convert",
        "-f",
        format,
        "-O",
        "raw",
        &target.name,
        &raw.display().to_string(),
    ])
    .unwrap();
    let read = std::fs::read(&raw).unwrap();
    std::fs::remove_file(&raw).unwrap();
    assert!(read.len() as u64 >= expected.len(), "{image} is too small");
    let differs = expected
        .first_difference(|offset, buffer: &mut [u8]| {
            let at = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&read[at..at + buffer.len()]);
            Ok::<(), Error>(())
        })
        .unwrap();
    assert_eq!(differs, None, "{image}");
}

fn features() -> Features {
    Features {
        encryption: false,
        dirty: false,
        huge: false,
        ..Features::all()
    }
}

/// Chains in which every reference is one that Catena follows: the format is recorded.
fn chains(depth: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = ChainSpec> {
    images::chains(features(), depth).prop_map(|mut chain| {
        for layer in &mut chain.layers {
            layer.format_recorded = true;
        }
        chain
    })
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn a_raw_image_of_a_chain_is_what_qemu_makes_of_it(chain in chains(1..=4)) {
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        let expected = oracle::guest(&built).unwrap();
        convert(&to_raw(&built.top, &dir.path().join("out.raw"))).unwrap();
        assert_same(dir.path(), "out.raw", "raw", &expected);
        let request = compare::Request { a: input(&built.top), b: input(&dir.path().join("out.raw")), strict: false };
        let outcome = compare::compare(&request, &Policy::libvirt(), &Silent).unwrap();
        prop_assert_eq!(outcome, Outcome::Same { sizes: None });
    }

    #[test]
    fn sizes_are_measured_as_qemu_measures_them(
        chain in chains(1..=2),
        cluster_bits in 9_u32..=21,
        refcount_order in 0_u32..=6,
        extended in any::<bool>(),
        full in any::<bool>(),
    ) {
        let mut chain = chain;
        // Holes behind the clusters of a qcow2 image are zeros to us, and to QEMU only where it guesses that the image was
        // preallocated. Clusters of a page have none.
        for layer in &mut chain.layers {
            if let images::Format::Qcow2(qcow2) = &mut layer.image.format {
                qcow2.preallocation = images::Preallocation::Off;
                qcow2.data_file = None;
                qcow2.cluster_bits = qcow2.cluster_bits.min(12);
                qcow2.extended_l2 = false;
            }
        }
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        let extended_l2 = extended && cluster_bits >= 14;
        let mut options = format!("cluster_size={},refcount_bits={}", 1_u64 << cluster_bits, 1 << refcount_order);
        if extended_l2 { options.push_str(",extended_l2=on"); }
        if full { options.push_str(",preallocation=full"); }
        let preallocation = if full { Preallocation::Full } else { Preallocation::Off };
        let kind = measure::Kind::Qcow2 {
            cluster_bits: ClusterBits::new(cluster_bits).unwrap(),
            refcount_order,
            extended_l2,
            backing: false,
            preallocation,
        };
        let disk = detect(&Start::at(&built.top, None), &Policy::libvirt());
        let bitmaps = disk.layers[0].bitmaps().unwrap();
        let stack = disk.open(catena::open::Sharing::Locked).unwrap();
        let ours = |kind| measure(&measure::Request { size: 0, kind }, Some(&stack), bitmaps.as_deref());
        let theirs = |format: &str, options: &[&str]| {
            let mut arguments = vec!["--output=json", "-O", format];
            arguments.extend(options);
            qemu::img_on("measure", &built.target(), &arguments).ok().map(|text| {
                let number = |name: &str| {
                    let rest = text.split(&format!("\"{name}\": ")).nth(1)?;
                    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
                };
                (number("required").unwrap(), number("fully-allocated").unwrap(), number("bitmaps"))
            })
        };
        let expected = theirs("qcow2", &["-o", &options]);
        match (ours(kind), expected) {
            (Ok(ours), Some(theirs)) => prop_assert_eq!((ours.required, ours.fully_allocated, ours.bitmaps), theirs),
            (Err(_), None) => {}
            (ours, theirs) => prop_assert!(false, "{:?} but {:?}", ours, theirs),
        }
        let raw = ours(measure::Kind::Raw).unwrap();
        let (required, full, _) = theirs("raw", &[]).unwrap();
        prop_assert_eq!((raw.required, raw.fully_allocated), (required, full));
    }
}

#[test]
fn an_interrupted_conversion_leaves_no_image_and_the_next_one_makes_it() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 top.qcow2 64M");
    folder.io("qcow2", "top.qcow2", &["write -P 7 0 40M", "write -P 8 50M 64k"]);
    let (top, out) = (folder.file("top.qcow2"), folder.file("out.raw"));
    let plan = convert::plan(&to_raw(&top, &out), &Policy::libvirt()).unwrap();
    for nth in [0, 1, 5, 15] {
        let stopped = plan.execute(&StopAt::new(nth)).unwrap_err();
        assert_eq!(stopped.kind(), ErrorKind::Cancelled);
        assert!(!out.exists());
    }
    drop(plan);
    convert(&to_raw(&top, &out)).unwrap();
    folder.img("compare -q top.qcow2 out.raw");
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 2, "nothing is left behind");
    assert_eq!(
        convert(&to_raw(&top, &out)).unwrap_err().kind(),
        ErrorKind::Conflict,
        "an image that exists is not overwritten"
    );
}

#[test]
fn disks_are_concatenated_and_zeros_become_holes() {
    let folder = Folder::new();
    std::fs::write(folder.file("a.raw"), [&[1; 3000][..], &[0; 200_000]].concat()).unwrap();
    std::fs::write(folder.file("b.raw"), vec![2; 70_000]).unwrap();
    folder.img("convert -q -f raw -O raw a.raw b.raw theirs.raw");
    let mut request = to_raw(&folder.file("a.raw"), &folder.file("ours.raw"));
    request.sources.push(input(&folder.file("b.raw")));
    convert(&request).unwrap();
    let (ours, theirs) = (
        std::fs::read(folder.file("ours.raw")).unwrap(),
        std::fs::read(folder.file("theirs.raw")).unwrap(),
    );
    assert!(ours == theirs);
    let map = |name: &str| folder.img(&format!("map -f raw --output=json {name}"));
    assert_eq!(map("ours.raw"), map("theirs.raw"));
}

#[test]
fn compares_as_qemu_img_does() {
    let folder = Folder::new();
    for (name, size, writes) in [
        ("a.qcow2", "4M", &["write -P 1 1M 64k"][..]),
        ("same.qcow2", "4M", &["write -P 1 1M 64k", "write -P 0 2M 64k"]),
        ("longer.qcow2", "5M", &["write -P 1 1M 64k", "write -z 4M 64k"]),
        (
            "other.qcow2",
            "4M",
            &["write -P 1 1M 64k", "write -P 3 3000k 512"],
        ),
        (
            "longer-data.qcow2",
            "5M",
            &["write -P 1 1M 64k", "write -P 3 4608k 512"],
        ),
    ] {
        folder.img(&format!("create -q -f qcow2 {name} {size}"));
        folder.io("qcow2", name, writes);
    }
    let compare = |name: &str, strict: bool| {
        let request = compare::Request {
            a: input(&folder.file("a.qcow2")),
            b: input(&folder.file(name)),
            strict,
        };
        compare::compare(&request, &Policy::libvirt(), &Silent).unwrap()
    };
    let sizes = Some((4 << 20, 5 << 20));
    assert_eq!(compare("same.qcow2", false), Outcome::Same { sizes: None });
    assert_eq!(
        compare("same.qcow2", true),
        Outcome::Status {
            at: GuestOffset(2 << 20)
        }
    );
    assert_eq!(compare("longer.qcow2", false), Outcome::Same { sizes });
    assert_eq!(
        compare("longer.qcow2", true),
        Outcome::Size {
            sizes: (4 << 20, 5 << 20)
        }
    );
    assert_eq!(
        compare("other.qcow2", false),
        Outcome::Content {
            at: GuestOffset(3000 << 10),
            sizes: None
        }
    );
    assert_eq!(
        compare("longer-data.qcow2", false),
        Outcome::Content {
            at: GuestOffset(4608 << 10),
            sizes
        }
    );
}

fn commit_request(top: &Path, after: After) -> commit::Request {
    commit::Request {
        start: Start::at(top, None),
        top: LayerChoice::Index(0),
        base: None,
        after,
        children: OtherChildren::default(),
        moving: Moving::default(),
    }
}

/// A raw base under three overlays, the lowest of which is shorter than the others.
fn layered(folder: &Folder) {
    folder.img("create -q -f raw base.raw 3M");
    folder.io("raw", "base.raw", &["write -P 9 0 3M"]);
    for (name, below, format, size, writes) in [
        ("one.qcow2", "base.raw", "raw", "2M", &["write -P 1 0 256k"][..]),
        (
            "two.qcow2",
            "one.qcow2",
            "qcow2",
            "4M",
            &["write -P 2 128k 256k", "write -z 512k 64k"],
        ),
        (
            "three.qcow2",
            "two.qcow2",
            "qcow2",
            "4M",
            &["write -P 3 3500k 64k", "write -P 4 100k 3k"],
        ),
    ] {
        folder.img(&format!(
            "create -q -f qcow2 -b {below} -F {format} {name} {size}"
        ));
        folder.io("qcow2", name, writes);
    }
}

#[test]
fn several_layers_are_committed_at_once_and_what_they_show_stays() {
    for nth in [0, 1, 2, 3, u32::MAX] {
        let folder = Folder::new();
        layered(&folder);
        folder.img("convert -q -O raw three.qcow2 expected.raw");
        let mut request = commit_request(&folder.file("three.qcow2"), After::Keep);
        request.base = Some(LayerChoice::Path(folder.file("base.raw")));
        let plan = || commit::plan(&request, &Policy::libvirt()).unwrap();
        if plan().execute(&StopAt::new(nth)).is_err() {
            folder.img("compare -q expected.raw three.qcow2");
            plan().execute(&Silent).unwrap();
        }
        folder.img("compare -q -f raw expected.raw base.raw");
        folder.img("compare -q expected.raw three.qcow2");
    }
}

#[test]
fn other_children_of_what_is_written_refuse_by_name() {
    let folder = Folder::new();
    layered(&folder);
    folder.img("create -q -f qcow2 -b base.raw -F raw other.qcow2");
    let mut request = commit_request(&folder.file("one.qcow2"), After::Keep);
    let plan = |request: &commit::Request| commit::plan(request, &Policy::libvirt());
    let refused = plan(&request).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ViewWouldChange);
    assert!(refused.to_string().contains("other.qcow2"), "{refused}");
    assert!(
        !refused.to_string().contains("two.qcow2"),
        "it shows the same: {refused}"
    );
    request.after = After::Delete;
    let refused = plan(&request).unwrap_err();
    assert!(refused.to_string().contains("two.qcow2"), "{refused}");
    request.children.forced = true;
    plan(&request).unwrap();
}

#[test]
fn committed_layers_are_deleted_and_what_is_above_stands_on_the_base() {
    let folder = Folder::new();
    layered(&folder);
    folder.img("convert -q -O raw three.qcow2 expected.raw");
    let mut request = commit_request(&folder.file("three.qcow2"), After::Delete);
    request.top = LayerChoice::Path(folder.file("two.qcow2"));
    request.base = Some(LayerChoice::Index(3));
    let plan = commit::plan(&request, &Policy::libvirt()).unwrap();
    assert_eq!(plan.depth(), 2);
    plan.execute(&Silent).unwrap();
    drop(plan);
    assert!(!folder.file("one.qcow2").exists() && !folder.file("two.qcow2").exists());
    folder.img("compare -q expected.raw three.qcow2");
    folder.img("check -q three.qcow2");
    assert!(folder.img("info three.qcow2").contains("backing file: base.raw"));
    let again = commit::plan(&request, &Policy::libvirt()).unwrap();
    assert!(again.is_done(), "running it again finds nothing to do");
    again.execute(&Silent).unwrap();
}

#[test]
fn what_a_stopped_commit_left_behind_is_deleted_by_the_next_one() {
    let folder = Folder::new();
    layered(&folder);
    folder.img("convert -q -O raw three.qcow2 expected.raw");
    let mut request = commit_request(&folder.file("three.qcow2"), After::Keep);
    request.top = LayerChoice::Path(folder.file("two.qcow2"));
    request.base = Some(LayerChoice::Path(folder.file("base.raw")));
    let plan = |request: &commit::Request| commit::plan(request, &Policy::libvirt());
    plan(&request).unwrap().execute(&Silent).unwrap();
    // As far as a commit came that was stopped before it deleted.
    folder.img("rebase -u -b base.raw -F raw three.qcow2");
    request.after = After::Delete;
    let rest = plan(&request).unwrap();
    assert!(!rest.is_done());
    rest.execute(&Silent).unwrap();
    assert!(!folder.file("one.qcow2").exists() && !folder.file("two.qcow2").exists());
    folder.img("compare -q expected.raw three.qcow2");
    assert!(plan(&request).unwrap().is_done());

    // An image that holds something else is not taken for one that has been committed.
    folder.img("create -q -f qcow2 -b base.raw -F raw two.qcow2");
    folder.io("qcow2", "two.qcow2", &["write -P 77 0 4k"]);
    assert_eq!(plan(&request).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_image_in_use_is_not_committed() {
    let folder = Folder::new();
    layered(&folder);
    let writer = detect(
        &Start::at(folder.file("base.raw"), Some(Format::Raw)),
        &Policy::libvirt(),
    );
    let _writer = writer.open_writable(0, catena::open::Sharing::Locked).unwrap();
    let mut request = commit_request(&folder.file("one.qcow2"), After::Keep);
    request.children.forced = true;
    let refused = commit::plan(&request, &Policy::libvirt()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
}

#[test]
fn nobody_else_uses_what_a_plan_writes_until_it_is_gone() {
    let folder = Folder::new();
    layered(&folder);
    let mut request = commit_request(&folder.file("one.qcow2"), After::Keep);
    request.children.forced = true;
    let plan = commit::plan(&request, &Policy::libvirt()).unwrap();
    let base = detect(
        &Start::at(folder.file("base.raw"), Some(Format::Raw)),
        &Policy::libvirt(),
    );
    let writer = || base.open_writable(0, catena::open::Sharing::Locked);
    assert_eq!(writer().unwrap_err().kind(), ErrorKind::Locked);
    plan.execute(&Silent).unwrap();
    assert_eq!(writer().unwrap_err().kind(), ErrorKind::Locked);
    drop(plan);
    writer().unwrap();
}

#[test]
fn an_existing_target_is_overwritten_but_for_the_zeros_it_is_known_to_hold() {
    let folder = Folder::new();
    folder.img("create -q -f raw from.raw 4M");
    folder.io("raw", "from.raw", &["write -P 5 1M 64k"]);
    let existing = |name: &str, is_zero| convert::Request {
        target: Target::Existing {
            path: folder.file(name),
            format: Some(Format::Qcow2),
            is_zero,
        },
        ..to_raw(&folder.file("from.raw"), &folder.file(name))
    };
    // What was there before goes, also where the source has nothing.
    folder.img("create -q -f qcow2 full.qcow2 5M");
    folder.io("qcow2", "full.qcow2", &["write -P 9 0 5M"]);
    convert(&existing("full.qcow2", false)).unwrap();
    folder.io(
        "qcow2",
        "full.qcow2",
        &["read -P 0 0 1M", "read -P 5 1M 64k", "read -P 0 2M 2M"],
    );
    folder.img("check -q full.qcow2");
    // An image that is known to read as zeros is given its data and nothing else.
    folder.img("create -q -f qcow2 empty.qcow2 4M");
    convert(&existing("empty.qcow2", true)).unwrap();
    folder.img("compare -q -f raw -F qcow2 from.raw empty.qcow2");
    let map = folder.img("map --output=json empty.qcow2");
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let present = |entry: &&serde_json::Value| entry["present"] == true;
    let present: Vec<_> = map.as_array().unwrap().iter().filter(present).collect();
    assert_eq!(present.len(), 1, "{map}");
    assert_eq!(present[0]["length"], 65_536, "{map}");
    // The caller's word is taken: what is there and was said to be zeros stays.
    folder.img("create -q -f qcow2 lied.qcow2 4M");
    folder.io("qcow2", "lied.qcow2", &["write -P 9 2M 64k"]);
    convert(&existing("lied.qcow2", true)).unwrap();
    folder.io("qcow2", "lied.qcow2", &["read -P 5 1M 64k", "read -P 9 2M 64k"]);
}
