//! Bundles: read to the end, and what their manifests say.
#![no_main]

use catena::open::Sharing;
use catena::ops::Silent;
use catena::ops::bundle::{export, import};
use catena::{Format, Policy, Start};
use catena_fuzz::{plant, seeds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: plant(exported()),
    |data: &[u8]| {
        let bundle = import::Bundle {
            name: "bundle".to_owned(),
            input: Box::new(data),
        };
        let Ok(manifests) = import::verify(vec![bundle], &Silent) else {
            return;
        };
        for manifest in &manifests {
            assert!(manifest.layers.len() <= manifest.files.len());
            assert!(manifest.top().is_some());
            for file in &manifest.files {
                assert!(!file.name.contains('/') && !file.name.starts_with('.') && file.mode <= 0o777);
            }
        }
    }
);

/// Real ones: with holes and without, compressed and not, of one layer and of two.
fn exported() -> Vec<(String, Vec<u8>)> {
    let folder = std::env::temp_dir().join(format!("catena-fuzz-bundle-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = |name: &str| folder.join(name);
    std::fs::write(path("dense.raw"), [7; 1536]).expect("a file");
    let sparse = std::fs::File::create(path("sparse.raw")).expect("a file");
    sparse.set_len(1 << 20).expect("it grows");
    std::fs::write(path("base.img"), [3; 4096]).expect("a file");
    for (name, bytes) in seeds::qcow2::with_headers() {
        std::fs::write(path(&format!("{name}.qcow2")), bytes).expect("a file");
    }
    let images = [
        ("dense.raw", Format::Raw),
        ("sparse.raw", Format::Raw),
        ("backing.qcow2", Format::Qcow2),
        ("unknown.qcow2", Format::Qcow2),
    ];
    let mut out = Vec::new();
    for (name, format) in images {
        for compress in [false, true] {
            let request = export::Request {
                start: Start::at(path(name), Some(format)),
                since: None,
                sharing: Sharing::Force,
                compress,
            };
            let mut bytes = Vec::new();
            let plan = export::plan(&request, &Policy::libvirt(), &Silent).expect("an image");
            plan.write(&mut bytes, &Silent).expect("it is written");
            out.push((format!("{name}-{compress}"), bytes));
        }
    }
    std::fs::remove_dir_all(&folder).expect("it is ours");
    out
}
