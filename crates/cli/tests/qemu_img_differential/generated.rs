//! Generated command lines: options drawn from lists of good and bad values, over drawn images and damaged headers.

use catena_testkit::images::{self, Features};
use catena_testkit::proptest::strategy::{Strategy, ValueTree};
use catena_testkit::proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::path::Path;

/// A source of numbers that is the same every time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() >> 11).unwrap() % end
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Images of all kinds in numbered folders; the names of those at the top of their chains.
pub fn images(count: usize, seed: u8, dir: &Path) -> Vec<String> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let features = Features {
        encryption: false,
        huge: false,
        // What a writer that died left is repaired when it is opened to be written, and said so.
        dirty: false,
        ..Features::all()
    };
    let strategy = images::chains(features, 1..=3);
    let mut names = Vec::new();
    for number in 0..count {
        let spec = strategy.new_tree(&mut runner).unwrap().current();
        let folder = dir.join(format!("i{number}"));
        std::fs::create_dir(&folder).unwrap();
        let built = spec.build(&folder).unwrap();
        for (index, layer) in built.layers.iter().enumerate() {
            // What is refused here although QEMU probes it: an image that is no leaf and whose format is not recorded.
            let below = built.layers.get(index..).unwrap();
            let is_refused = below.windows(3).any(|layers| !layers[0].format_recorded);
            let has_data_file = below.iter().any(|layer| layer.data_file.is_some());
            // QEMU takes the name of a data file relative to the current folder.
            if !has_data_file && !is_refused {
                let path = layer.path.strip_prefix(dir.canonicalize().unwrap()).unwrap();
                names.push(path.display().to_string());
            }
        }
    }
    names
}

/// Questions about an image.
pub fn question(dice: &mut Dice, names: &[String]) -> String {
    let name = names[dice.below(names.len())].as_str();
    let output = dice.pick(&["", " --output json", " --output=human"]);
    let shared = dice.pick(&["", "", "", " -U"]);
    match dice.below(8) {
        0 => format!("info{shared}{output} {name}"),
        1 => format!("info{shared}{output} --backing-chain {name}"),
        2 | 3 => {
            let start = match dice.below(3) {
                0 => format!(" -s {}", dice.below(1 << 22)),
                1 => format!(" --start-offset={}k", dice.below(1 << 11)),
                _ => String::new(),
            };
            let most = match dice.below(3) {
                0 => format!(" -l {}", dice.below(1 << 21)),
                _ => String::new(),
            };
            format!("map{shared}{output}{start}{most} {name}")
        }
        4 => format!("snapshot -l{shared} {name}"),
        5 => {
            let other = names[dice.below(names.len())].as_str();
            let strict = dice.pick(&["", " -s"]);
            format!("compare{strict}{shared} {name} {other}")
        }
        _ => {
            let format = dice.pick(&["raw", "qcow2", "qcow2"]);
            let mut options = Vec::new();
            if format == "qcow2" && dice.chance(60) {
                options.push(format!(
                    "cluster_size={}",
                    dice.pick(&["512", "4k", "16k", "64k", "1M", "2M"])
                ));
            }
            if format == "qcow2" && dice.chance(40) {
                options.push(format!("refcount_bits={}", dice.pick(&["1", "8", "16", "64"])));
            }
            let options = match options.as_slice() {
                [] => String::new(),
                some => format!(" -o {}", some.join(",")),
            };
            format!("measure -O {format}{options}{shared}{output} {name}")
        }
    }
}

/// Copies of an image, and changes to it.
pub fn copy(dice: &mut Dice, names: &[String]) -> String {
    let name = names[dice.below(names.len())].as_str();
    match dice.below(5) {
        0 | 1 => {
            let mut words = vec!["convert".to_owned()];
            let qcow2 = dice.chance(70);
            if qcow2 {
                words.push("-O qcow2".to_owned());
            }
            for (percent, flag) in [(15, "-W"), (10, "-m 3"), (10, "-U"), (10, "-T none"), (10, "-q")] {
                if dice.chance(percent) {
                    words.push(flag.to_owned());
                }
            }
            if dice.chance(20) {
                words.push(format!(
                    "-S {}",
                    dice.pick(&["0", "512", "4k", "64k", "1M", "100", "x"])
                ));
            }
            if qcow2 && dice.chance(25) {
                words.push("-c".to_owned());
            }
            if qcow2 && dice.chance(60) {
                words.push(format!("-o {}", options(dice)));
            }
            words.push(name.to_owned());
            words.push("n".to_owned());
            words.join(" ")
        }
        2 => {
            let block = dice.pick(&["", "bs=1000 ", "bs=64k ", "bs=513 ", "bs=1M "]);
            let count = match dice.below(3) {
                0 => format!("count={} ", dice.below(40)),
                _ => String::new(),
            };
            let skip = match dice.below(3) {
                0 => format!("skip={} ", dice.below(20)),
                _ => String::new(),
            };
            let format = dice.pick(&["", "-O qcow2 ", "-O raw "]);
            format!("dd {format}{block}{count}{skip}if={name} of=n")
        }
        3 => {
            let size = dice.pick(&[
                "+1M", "+512", "+64k", "80M", "1G", "+3", "0", "-x", "1.5G", "+2T", "x", "", "-1E",
            ]);
            let format = dice.pick(&["", "", " -q"]);
            format!("resize{format} {name} '{size}'")
        }
        _ => {
            let format = dice.pick(&["", " -F qcow2", " -F raw", " -F foo"]);
            let size = dice.pick(&["", "", " 3M", " 100", " x"]);
            let blind = dice.pick(&["", "", "", " -u"]);
            format!("create -f qcow2{blind} -b {name}{format} n{size}")
        }
    }
}

/// New images with all kinds of options.
pub fn creation(dice: &mut Dice) -> String {
    let format = dice.pick(&["qcow2", "qcow2", "qcow2", "qcow2", "raw"]);
    let quiet = dice.pick(&["", "", "", " -q"]);
    let list = match format {
        "raw" => match dice.below(3) {
            0 => format!(" -o preallocation={}", dice.pick(&["off", "falloc", "full", "x"])),
            _ => String::new(),
        },
        _ => format!(" -o {}", options(dice)),
    };
    const SMALL: &[&str] = &["1M", "0", "513", "3M", "7.5M", "0x100000", "x", "1.5", ""];
    const LARGE: &[&str] = &["1M", "64M", "1G", "1T", "2P", "7E"];
    // What is allocated from the start must fit.
    let is_large = dice.chance(50) && !list.contains("preallocation");
    let size = dice.pick(if is_large { LARGE } else { SMALL });
    format!("create -f {format}{quiet}{list} n '{size}'")
}

/// A list of qcow2 options, good and bad.
fn options(dice: &mut Dice) -> String {
    const ALL: &[(&str, &[&str])] = &[
        (
            "cluster_size",
            &[
                "512", "1k", "4k", "16k", "32k", "64k", "128k", "2M", "1000", "4M", "0", "x",
            ],
        ),
        ("compat", &["0.10", "1.1", "v2", "v3", "v3", "v3", "2"]),
        (
            "refcount_bits",
            &["1", "2", "4", "8", "16", "32", "64", "16", "3", "0", "128"],
        ),
        ("lazy_refcounts", &["on", "off", "yes", "false", "maybe"]),
        ("extended_l2", &["on", "off", "on", "y"]),
        ("compression_type", &["zlib", "zstd", "lzma"]),
        ("preallocation", &["off", "metadata", "falloc", "full", "none"]),
        ("data_file_raw", &["on", "off"]),
        ("backing_fmt", &["raw"]),
        ("foo", &["1"]),
    ];
    let mut list = Vec::new();
    for (key, values) in ALL {
        let percent = match *key {
            "foo" | "backing_fmt" | "data_file_raw" => 3,
            "preallocation" => 15,
            _ => 30,
        };
        if dice.chance(percent) {
            list.push(format!("{key}={}", dice.pick(values)));
        }
    }
    if list.is_empty() {
        list.push("cluster_size=8k".to_owned());
    }
    // The order decides which of several faults is told.
    if dice.chance(50) {
        list.reverse();
    }
    list.join(",")
}

/// A shell command that damages a copy of an image's header, and its name.
pub fn damage(dice: &mut Dice, number: usize) -> (String, String) {
    const PLACES: &[(usize, usize)] = &[
        (0, 8),
        (8, 12),
        (20, 4),
        (24, 8),
        (32, 4),
        (36, 4),
        (40, 8),
        (48, 8),
        (56, 4),
        (72, 8),
        (80, 8),
        (88, 8),
        (96, 8),
        (104, 1),
        (112, 40),
        (400, 64),
    ];
    let (start, len) = PLACES[dice.below(PLACES.len())];
    let base = dice.pick(&["a.qcow2", "c.qcow2", "s.qcow2", "bm.qcow2", "v2.qcow2", "x.qcow2"]);
    let mut commands = vec![format!("cp {base} h{number}.qcow2")];
    for _ in 0..=dice.below(2) {
        let at = start + dice.below(len);
        let byte = match dice.below(4) {
            0 => 0,
            1 => 0xff,
            2 => 1 << dice.below(8),
            _ => dice.below(256),
        };
        commands.push(format!(
            "printf '\\{byte:03o}' | dd of=h{number}.qcow2 bs=1 seek={at} conv=notrunc status=none"
        ));
    }
    (commands.join(" && "), format!("h{number}.qcow2"))
}
