//! Operations that write qcow2 images, held against QEMU on generated chains: what guests see afterwards, whether `qemu-img
//! check` finds fault, and what becomes of them half-way.
#![cfg(test)]

use catena::ops::commit::{self, After};
use catena::ops::convert::{self, Publish, Shared, Target};
use catena::ops::create::{Kind, Preallocation, Qcow2Options};
use catena::ops::rebase;
use catena::ops::relink::NewBacking;
use catena::ops::stream;
use catena::ops::{Input, LayerChoice, Moving, Observer, OtherChildren, Silent};
use catena::{Error, ErrorKind, Format, Policy, Start};
use catena_format::qcow2::Compression;
use catena_testkit::images::{self, Built, ChainSpec, Features};
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

/// Runs an operation that is stopped half-way, looks, and runs it to its end.
fn interrupted<P>(
    nth: u32,
    plan: impl Fn() -> P,
    execute: impl Fn(&P, &dyn Observer) -> catena::Result<()>,
    look: impl FnOnce(),
) {
    let outcome = execute(&plan(), &StopAt::new(nth));
    if let Err(error) = outcome {
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        look();
        execute(&plan(), &Silent).unwrap();
    }
}

/// The guest's bytes of an image as QEMU reads them, held against what is expected; and its structures are sound.
fn assert_shows(image: &Path, expected: &oracle::GuestBytes) {
    let dir = catena_testkit::scratch().unwrap();
    let raw = dir.path().join("read.raw");
    let (image, out) = (image.display().to_string(), raw.display().to_string());
    let format = if image.ends_with("raw") { "raw" } else { "qcow2" };
    qemu::img(["convert", "-f", format, "-O", "raw", &image, &out]).unwrap();
    let read = std::fs::read(&raw).unwrap();
    assert!(read.len() as u64 >= expected.len(), "{image} is too small");
    let differs = expected
        .first_difference(|offset, buffer: &mut [u8]| {
            let at = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&read[at..at + buffer.len()]);
            Ok::<(), Error>(())
        })
        .unwrap();
    assert_eq!(differs, None, "{image}");
    if format == "qcow2" {
        qemu::img(["check", "-q", "-f", "qcow2", &image]).unwrap();
        let info = qemu::img(["info", "-f", "qcow2", &image]).unwrap();
        assert!(!info.contains("in-use"), "bitmaps of {image} are lost: {info}");
    }
}

fn features() -> Features {
    Features {
        encryption: false,
        dirty: false,
        huge: false,
        ..Features::all()
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..ProptestConfig::default()
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

fn start(built: &Built, layer: usize) -> Start {
    let layer = &built.layers[layer];
    Start::at(&layer.path, Format::from_qemu(layer.format))
}

fn new_qcow2(path: &Path, options: Qcow2Options) -> Target {
    Target::New {
        path: path.to_owned(),
        kind: Kind::Qcow2(Box::new(options)),
        size: None,
        preallocation: Preallocation::Off,
        publish: Publish::Complete,
    }
}

fn conversion(source: Start, target: Target) -> convert::Request {
    convert::Request {
        sources: vec![Input::at(source)],
        target,
        shared: Shared::Compared,
        moving: Moving::default(),
        compressed: false,
    }
}

fn convert(request: &convert::Request) {
    convert::plan(request, &Policy::libvirt())
        .unwrap()
        .execute(&Silent)
        .unwrap();
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn a_qcow2_image_of_a_chain_shows_the_same(
        chain in chains(1..=3),
        cluster_bits in 9_u32..=18,
        compressed in any::<bool>(),
        zstd in any::<bool>(),
        extended in any::<bool>(),
        any_order in any::<bool>(),
    ) {
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        let expected = oracle::guest(&built).unwrap();
        let out = dir.path().join("out.qcow2");
        let options = Qcow2Options {
            cluster_size: 1 << cluster_bits,
            extended_l2: extended && cluster_bits >= 14,
            compression: if zstd { Compression::Zstd } else { Compression::Deflate },
            ..Qcow2Options::default()
        };
        let mut request = conversion(start(&built, 0), new_qcow2(&out, options));
        request.compressed = compressed;
        request.moving.any_order = any_order;
        convert(&request);
        assert_shows(&out, &expected);
    }

    #[test]
    fn layers_are_committed_and_all_that_is_kept_shows_the_same(
        chain in chains(2..=4),
        depth in 1_usize..4,
        stop in 0_u32..6,
        after in prop_oneof![Just(After::Keep), Just(After::Empty), Just(After::Delete)],
    ) {
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        let expected = oracle::guest(&built).unwrap();
        let base = depth.min(built.layers.len() - 1);
        let request = commit::Request {
            start: start(&built, 0),
            top: LayerChoice::Index(0),
            base: Some(LayerChoice::Path(built.layers[base].path.clone())),
            after,
            children: OtherChildren::default(),
            moving: Moving::default(),
        };
        interrupted(
            stop,
            || commit::plan(&request, &Policy::libvirt()).unwrap(),
            commit::Plan::execute,
            || assert_shows(&built.top, &expected),
        );
        assert_shows(&built.layers[base].path, &expected);
        prop_assert_eq!(built.top.exists(), after != After::Delete);
        if after != After::Delete {
            assert_shows(&built.top, &expected);
        }
        if after == After::Empty {
            let again = commit::plan(&request, &Policy::libvirt()).unwrap();
            prop_assert_eq!((again.to_copy(), again.depth()), (0, 1), "it is empty, and stands on the base");
        }
    }

    #[test]
    fn lower_layers_are_pulled_up(chain in chains(2..=4), keep in 2_usize..5, stop in 0_u32..6, compressed in any::<bool>()) {
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        prop_assume!(!compressed || built.layers[0].data_file.is_none());
        let expected = oracle::guest(&built).unwrap();
        let base = built.layers.get(keep).map(|layer| layer.path.clone());
        let request = stream::Request {
            start: start(&built, 0),
            base: base.clone().map(LayerChoice::Path),
            moving: Moving::default(),
            compressed,
            dated: None,
        };
        interrupted(
            stop,
            || stream::plan(&request, &Policy::libvirt()).unwrap(),
            stream::Plan::execute,
            || assert_shows(&built.top, &expected),
        );
        // What was between is of no use any more.
        for layer in &built.layers[1..keep.min(built.layers.len())] {
            std::fs::remove_file(&layer.path).unwrap();
        }
        assert_shows(&built.top, &expected);
        prop_assert!(stream::plan(&request, &Policy::libvirt()).unwrap().is_done());
    }

    #[test]
    fn an_image_is_put_on_another_one_and_shows_the_same(
        chain in chains(2..=3),
        other in chains(1..=2),
        none in any::<bool>(),
        stop in 0_u32..6,
        compressed in any::<bool>(),
    ) {
        let dir = catena_testkit::scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        prop_assume!(!compressed || built.layers[0].data_file.is_none());
        let others = dir.path().join("other");
        std::fs::create_dir(&others).unwrap();
        let other = other.build(&others).unwrap();
        let expected = oracle::guest(&built).unwrap();
        let other_expected = oracle::guest(&other).unwrap();
        let request = rebase::Request {
            start: start(&built, 0),
            backing: (!none).then(|| NewBacking {
                name: other.top.display().to_string(),
                format: Format::from_qemu(other.layers[0].format).unwrap(),
            }),
            moving: Moving::default(),
            compressed,
        };
        interrupted(
            stop,
            || rebase::plan(&request, &Policy::libvirt()).unwrap(),
            rebase::Plan::execute,
            || assert_shows(&built.top, &expected),
        );
        for layer in &built.layers[1..] {
            std::fs::remove_file(&layer.path).unwrap();
        }
        assert_shows(&built.top, &expected);
        assert_shows(&other.top, &other_expected);
    }
}

#[test]
fn what_a_new_backing_image_has_already_is_left_out() {
    let folder = Folder::new();
    folder.img("create -q -f raw base.raw 8M");
    folder.io("raw", "base.raw", &["write -P 9 0 4M"]);
    folder.img("create -q -f qcow2 -b base.raw -F raw one.qcow2");
    folder.io("qcow2", "one.qcow2", &["write -P 1 1M 64k", "write -z 2M 64k"]);
    folder.img("convert -O raw one.qcow2 one.raw");
    let backing = |name: &str, format| Qcow2Options {
        backing: Some((name.to_owned(), format)),
        ..Qcow2Options::default()
    };
    for (source, out) in [("one.qcow2", "again.qcow2"), ("one.raw", "compared.qcow2")] {
        let target = new_qcow2(&folder.file(out), backing("base.raw", Format::Raw));
        convert(&conversion(Start::at(folder.file(source), None), target));
        folder.img(&format!("compare -q one.qcow2 {out}"));
        folder.img(&format!("check -q {out}"));
        let map = folder.img(&format!("map --output=json {out}"));
        assert_eq!(map.matches("\"depth\": 0").count(), 2, "{map}");
    }
    // qemu-img's own rule looks at the source's active image alone.
    let target = new_qcow2(&folder.file("theirs.qcow2"), backing("base.raw", Format::Raw));
    let mut request = conversion(Start::at(folder.file("one.qcow2"), None), target);
    request.shared = Shared::SourceBacking;
    convert(&request);
    folder.img("convert -O qcow2 -B base.raw -F raw one.qcow2 qemu.qcow2");
    let map = |name: &str| folder.img(&format!("map --output=json {name}"));
    assert_eq!(map("theirs.qcow2"), map("qemu.qcow2"));
}

#[test]
fn a_converted_image_lies_on_its_medium_as_qemu_img_would_put_it() {
    let folder = Folder::new();
    folder.img("create -q -f qcow2 top.qcow2 64M");
    folder.io(
        "qcow2",
        "top.qcow2",
        &[
            "write -P 7 1000k 9M",
            "write -P 8 50M 64k",
            "write -P 1 30M 5k",
            "write -P 0 40M 128k",
        ],
    );
    let map = |name: &str| folder.img(&format!("map --output=json {name}"));
    for (arguments, options, compressed) in [
        ("", Qcow2Options::default(), false),
        ("-c ", Qcow2Options::default(), true),
        (
            "-o cluster_size=4k ",
            Qcow2Options {
                cluster_size: 4096,
                ..Qcow2Options::default()
            },
            false,
        ),
    ] {
        folder.img(&format!("convert -O qcow2 {arguments}top.qcow2 theirs.qcow2"));
        let mut request = conversion(
            Start::at(folder.file("top.qcow2"), None),
            new_qcow2(&folder.file("ours.qcow2"), options),
        );
        request.compressed = compressed;
        convert(&request);
        assert_eq!(map("ours.qcow2"), map("theirs.qcow2"), "{arguments}");
        let statistics = |name: &str| {
            folder
                .img(&format!("check --output=json {name}"))
                .replace(name, "")
        };
        assert_eq!(
            statistics("ours.qcow2"),
            statistics("theirs.qcow2"),
            "{arguments}"
        );
        std::fs::remove_file(folder.file("ours.qcow2")).unwrap();
    }
}

#[test]
fn a_preallocated_image_is_byte_for_byte_what_qemu_img_makes() {
    use catena::ops::create::{self, Existing};
    let folder = Folder::new();
    let defaults = Qcow2Options::default;
    for (arguments, size, options) in [
        ("", 10 << 20, defaults()),
        ("", 0, defaults()),
        ("", 5000, defaults()),
        (
            "cluster_size=512,",
            3 << 20,
            Qcow2Options {
                cluster_size: 512,
                ..defaults()
            },
        ),
        (
            "cluster_size=4k,refcount_bits=64,",
            40 << 20,
            Qcow2Options {
                cluster_size: 4096,
                refcount_bits: 64,
                ..defaults()
            },
        ),
        (
            "extended_l2=on,",
            10 << 20,
            Qcow2Options {
                extended_l2: true,
                ..defaults()
            },
        ),
        (
            "data_file=data.bin,data_file_raw=on,",
            10 << 20,
            Qcow2Options {
                data_file: Some(("data.bin".to_owned(), true)),
                ..defaults()
            },
        ),
    ] {
        for (mode, preallocation) in [
            ("metadata", Preallocation::Metadata),
            ("falloc", Preallocation::Falloc),
            ("full", Preallocation::Full),
            ("off", Preallocation::Off),
        ] {
            let what = format!("{arguments}preallocation={mode} {size}");
            folder.img(&format!(
                "create -q -f qcow2 -o {arguments}preallocation={mode} new.qcow2 {size}"
            ));
            let read = |name: &str| std::fs::read(folder.file(name)).unwrap_or_default();
            let (theirs, their_data) = (read("new.qcow2"), read("data.bin"));
            let request = create::Request {
                path: folder.file("new.qcow2"),
                existing: Existing::Overwrite,
                size: Some(size),
                kind: Kind::Qcow2(Box::new(options.clone())),
                preallocation,
            };
            create::plan(&request, &Policy::libvirt())
                .unwrap()
                .execute()
                .unwrap();
            folder.img("check -q new.qcow2");
            let (ours, our_data) = (read("new.qcow2"), read("data.bin"));
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!((differs, ours.len()), (None, theirs.len()), "{what}");
            assert!(our_data == their_data, "{what}");
        }
    }
}
