//! Policy files.
#![no_main]

use catena::policy::{MAX_DEPTH, Policy, Role};
use catena::{ErrorKind, Source};
use catena_fuzz::plant;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

const SEEDS: [&str; 3] = [
    "[formats]\nunrecorded = 'refuse'\n[trust]\nroots = ['/srv']\nowners = ['root', 0]\n",
    "[trust]\ndigests = ['sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad']\n",
    "[reach]\nfolders = ['/srv/images']\nschemes = ['file', 'nbd']\njson = false\ndata-files = false\ndepth = 200\n",
];

fuzz_target!(
    init: plant(SEEDS.iter().enumerate().map(|(n, text)| (n.to_string(), text.as_bytes().to_vec()))),
    |text: &str| {
        match Policy::parse("p.toml", text) {
            Ok(policy) => {
                assert!((1..=MAX_DEPTH).contains(&policy.depth()));
                let path = Path::new("/srv/images/base");
                let _ = policy.check("base", &Source::file(path), Role::Backing);
                let _ = policy.check("json:{}", &Source::file(path), Role::DataFile);
                policy.reaches(path);
                assert!(!policy.reaches(Path::new("/srv/../etc/shadow")) || policy.reaches(Path::new("/etc/shadow")));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
        }
    }
);
