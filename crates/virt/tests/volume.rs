//! Images as libvirt's storage driver shows them, element for element, over images of every format and generated chains.
#![cfg(test)]

use catena::Policy;
use catena_testkit::Folder;
use catena_testkit::dice::Dice;
use catena_testkit::libvirt::Daemon;
use catena_virt::volume::{Request, volume};
use catena_virt::{Document, volume_disagreements};
use std::path::Path;

/// The lines of a volume, with what is between tags put on one line, and empty elements written in one way.
fn lines(xml: &str) -> Vec<String> {
    let joined = xml.replace(">\n    </encryption>", "/>");
    joined.lines().map(|line| line.trim().to_owned()).collect()
}

fn ours(path: &Path) -> catena::Result<String> {
    let request = Request {
        path,
        format: None,
        name: None,
    };
    Ok(volume(&request, &Policy::libvirt())?.xml)
}

/// What is in one and not in the other, as `-` and `+` lines.
fn difference(theirs: &str, ours: &str) -> Vec<String> {
    let (theirs, ours) = (lines(theirs), lines(ours));
    let mut at = 0;
    let mut told = Vec::new();
    for line in &theirs {
        match ours.iter().skip(at).position(|other| other == line) {
            Some(skipped) => {
                let more = ours.iter().skip(at).take(skipped);
                told.extend(more.map(|line| format!("+{line}")));
                at += skipped + 1;
            }
            None => told.push(format!("-{line}")),
        }
    }
    told.extend(ours.iter().skip(at).map(|line| format!("+{line}")));
    told
}

/// Compares every image of a folder; those that differ, and in what.
fn compared(daemon: &Daemon, folder: &Folder) -> Vec<(String, Vec<String>)> {
    let mut differing = Vec::new();
    for (name, theirs) in daemon.volumes(folder.path()) {
        let ours = ours(&folder.file(&name));
        let difference = match (theirs, ours) {
            (Ok(theirs), Ok(ours)) => difference(&theirs, &ours),
            (Err(_), Err(_)) => Vec::new(),
            (Ok(_), Err(_)) => vec!["refused".to_owned()],
            (Err(said), Ok(_)) => vec![format!("libvirt: {}", said.trim())],
        };
        if !difference.is_empty() {
            differing.push((name, difference));
        }
    }
    differing
}

/// Images alone, of every format and feature that shows.
fn alone(folder: &Folder) {
    let create = |words: &str| folder.img(&format!("create -q {words}"));
    let secret = "--object secret,id=s,data=x";
    create("-f raw raw.img 5M");
    for (name, options) in [
        ("v2", "compat=0.10"),
        ("v3", "compat=1.1"),
        ("large", "cluster_size=2M,extended_l2=on"),
        ("small", "cluster_size=512"),
        ("lazy", "lazy_refcounts=on,compression_type=zstd"),
        ("data", "data_file=data.raw"),
        (
            "raw-data",
            "data_file=raw-data.raw,data_file_raw=on,lazy_refcounts=on",
        ),
    ] {
        create(&format!("-f qcow2 -o {options} {name}.qcow2 5M"));
    }
    create(&format!(
        "-f luks {secret} -o key-secret=s,iter-time=10 alone.luks 5M"
    ));
    create(&format!(
        "-f qcow2 {secret} -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 luks.qcow2 5M"
    ));
    create(&format!(
        "-f qcow2 {secret} -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 5M"
    ));
    for format in ["vmdk", "vdi", "vpc", "vhdx", "qed", "qcow"] {
        create(&format!("-f {format} new.{format} 5M"));
    }
    for variant in ["monolithicFlat", "streamOptimized", "twoGbMaxExtentSparse"] {
        create(&format!("-f vmdk -o subformat={variant} {variant}.vmdk 5M"));
    }
    create("-f vpc -o subformat=fixed fixed.vpc 5M");
    folder.img("snapshot -c one v3.qcow2");
    for (name, bytes) in [("empty", ""), ("short", "hello\n"), ("we'ird <&> \"é.img", "x")] {
        std::fs::write(folder.file(name), bytes).unwrap();
    }
    std::fs::write(folder.file("disc.iso"), vec![0; 40 << 10]).unwrap();
    folder.patch("disc.iso", 32_769, b"CD001");
    folder.run("touch", &["-d", "1960-01-01 00:00:00", "short"]);
    folder.run("touch", &["-d", "2020-01-01 00:00:00.25", "empty"]);
    folder.run("chmod", &["4750", "small.qcow2"]);
    folder.run("chmod", &["o+r", "small.qcow2"]);
    folder.run("ln", &["-s", "v2.qcow2", "link.qcow2"]);
    folder.run("ln", &["-s", "nowhere", "dangling.qcow2"]);
    folder.run("mkfifo", &["fifo"]);
}

/// Overlays of what [`alone`] made, and of what is not there.
fn overlays(folder: &Folder) {
    let create = |words: &str| folder.img(&format!("create -q {words}"));
    for (number, (name, format)) in [
        ("v2.qcow2", "qcow2"),
        ("raw.img", "raw"),
        ("./raw.img", "raw"),
        ("data.qcow2", "qcow2"),
        ("luks.qcow2", "qcow2"),
        ("alone.luks", "luks"),
        ("link.qcow2", "qcow2"),
        ("new.vdi", "vdi"),
        ("new.vpc", "vpc"),
        ("new.vmdk", "vmdk"),
        ("new.qed", "qed"),
        ("v2.qcow2", "bochs"),
        ("raw.img", "host_device"),
        ("missing.qcow2", "qcow2"),
        ("fifo", "raw"),
        ("/dev/zero", "raw"),
        ("/", "raw"),
        ("nbd://host/disk", "raw"),
        ("json:{\"driver\":\"nbd\",\"host\":\"h\"}", "raw"),
        ("bogus:place", "raw"),
    ]
    .into_iter()
    .enumerate()
    {
        create(&format!(
            "-f qcow2 -u -b {name} -F {format} over{number}.qcow2 5M"
        ));
    }
    for name in ["v3.qcow2", "raw.img", "alone.luks", "new.vdi", "luks.qcow2"] {
        create(&format!("-f qcow2 -u -b {name} -F raw unsaid-{name} 5M"));
        folder.forget_format(&format!("unsaid-{name}"));
    }
    create("-f qcow -b v2.qcow2 -F qcow2 over.qcow");
    create("-f qed -b raw.img -F raw over.qed");
    create("-f vmdk -b new.vmdk -F vmdk over.vmdk");
    create("-f qcow2 -b over0.qcow2 -F qcow2 third.qcow2");
    // Its backing image is probed by libvirt too, and recording no format is right for it.
    create("-f qcow2 -b third.qcow2 -F qcow2 fourth.qcow2");
    folder.forget_format("fourth.qcow2");
}

#[test]
fn is_what_a_pool_shows_of_images_of_every_format() {
    let daemon = Daemon::start().unwrap();
    let folder = Folder::new();
    alone(&folder);
    overlays(&folder);
    assert_eq!(compared(&daemon, &folder), []);
}

#[test]
fn differs_only_where_the_pool_shows_what_is_not_so() {
    let daemon = Daemon::start().unwrap();
    let folder = Folder::new();
    let create = |words: &str| folder.img(&format!("create -q {words}"));
    create("-f raw base.img 5M");
    create("-f qcow2 base.qcow2 5M");
    create("-f parallels base.parallels 5M");
    create("-f vhdx base.vhdx 5M");
    create("-f qcow2 -u -b nbd://host/disk -F qcow2 remote.qcow2 5M");
    create("-f qcow2 -u -b base.vhdx -F vhdx vhdx.qcow2 5M");
    create("-f qcow2 -b base.qcow2 -F qcow2 word.qcow2");
    let bytes = std::fs::read(folder.file("word.qcow2")).unwrap();
    let at = bytes.windows(5).position(|window| window == b"qcow2").unwrap();
    folder.patch("word.qcow2", at as u64, b"weird");
    create("-f qcow2 -u -b file:base.img -F raw prefix.qcow2 5M");
    // Of version 3, libvirt would take no pool that has it.
    create("-f qcow2 -o compat=0.10 cut.qcow2 5M");
    std::fs::File::options()
        .write(true)
        .open(folder.file("cut.qcow2"))
        .unwrap()
        .set_len(50)
        .unwrap();
    let expected: [(&str, &[&str]); 6] = [
        // libvirt's own list has it as a folder of files, and no size.
        (
            "base.parallels",
            &["-<volume type='ploop'>", "+<volume type='file'>"],
        ),
        ("cut.qcow2", &["refused"]),
        ("prefix.qcow2", &["-<path>file:base.img</path>"]),
        (
            "remote.qcow2",
            &["-<format type='raw'/>", "+<format type='qcow2'/>"],
        ),
        ("vhdx.qcow2", &["-<format type='raw'/>", "+<format type='vhd'/>"]),
        // What is not known is not called raw, for who believes it would show the guest something else.
        ("word.qcow2", &["-<format type='raw'/>"]),
    ];
    let found = compared(&daemon, &folder);
    let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, expected.map(|(name, _)| name), "{found:#?}");
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        for line in expected {
            assert!(found.iter().any(|found| found == line), "{name}: {found:#?}");
        }
    }
}

#[test]
fn is_what_a_pool_shows_of_generated_chains() {
    let daemon = Daemon::start().unwrap();
    let mut dice = Dice::new(5);
    let folder = Folder::new();
    let mut below: Vec<(String, &str)> = Vec::new();
    for number in 0..60 {
        let name = format!("image{number}");
        let size = dice.within(1..64) * 512;
        let options = [
            format!("cluster_size={}", 512 << dice.below(8)),
            format!("compat={}", dice.one_of(&["0.10", "1.1"])),
        ];
        match dice.below(4) {
            _ if below.is_empty() => drop(folder.img(&format!("create -q -f raw {name} {size}"))),
            0 => drop(folder.img(&format!("create -q -f raw {name} {size}"))),
            1 => drop(folder.img(&format!(
                "create -q -f qcow2 -o {} {name} {size}",
                options.join(",")
            ))),
            _ => {
                let (base, format) = dice.one_of(&below).clone();
                let base = if dice.chance(50) {
                    base
                } else {
                    folder.file(&base).to_str().unwrap().to_owned()
                };
                folder.img(&format!(
                    "create -q -f qcow2 -o {} -b {base} -F {format} {name}",
                    options.join(",")
                ));
                if dice.chance(20) && options.iter().any(|option| option == "compat=1.1") {
                    folder.forget_format(&name);
                }
            }
        }
        let bytes = std::fs::read(folder.file(&name)).unwrap();
        below.push((name, if bytes.starts_with(b"QFI") { "qcow2" } else { "raw" }));
    }
    assert_eq!(compared(&daemon, &folder), []);
}

#[test]
fn is_valid_by_libvirts_schema_and_reads_back() {
    let folder = Folder::new();
    alone(&folder);
    overlays(&folder);
    let mut count = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let name = entry.unwrap().file_name();
        // The schema takes no name with quotes in it, as libvirt itself does.
        if name.to_str().unwrap().contains('"') {
            continue;
        }
        let Ok(xml) = ours(&folder.file(name.to_str().unwrap())) else {
            continue;
        };
        // Nor a backing path that is none, nor a data file, all of which it shows all the same.
        let backing = xml.split("<backingStore>").nth(1).unwrap_or("<path>/");
        if !backing.contains("<path>/") || backing.contains("<path>/</path>") || xml.contains("<data_file/>")
        {
            continue;
        }
        std::fs::write(folder.file("volume.xml"), &xml).unwrap();
        folder.run("virt-xml-validate", &["volume.xml", "storagevol"]);
        let read = Document::parse(&xml).unwrap();
        assert_eq!(read.name.as_deref(), name.to_str());
        let volume = read.volume.unwrap();
        assert_eq!(
            volume.path.as_deref(),
            Some(folder.file(name.to_str().unwrap()).as_path())
        );
        let policy = Policy::libvirt();
        let found = volume_disagreements(&volume, &volume.chain(&policy).unwrap(), &policy);
        assert_eq!(found, [], "{name:?}");
        count += 1;
    }
    assert!(count > 40, "{count}");
}
