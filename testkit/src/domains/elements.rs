//! `<disk>` elements, drawn.

use super::{Forest, KEYS, Layer, PASSPHRASE};
use crate::Dice;
use std::path::PathBuf;

/// The groups that [`disk`] names.
pub(super) const THROTTLE_GROUPS: &str = "<throttlegroups>\
    <throttlegroup><group_name>slow</group_name><total_bytes_sec>1000000</total_bytes_sec></throttlegroup>\
    <throttlegroup><group_name>few</group_name><read_iops_sec>100</read_iops_sec>\
    <write_iops_sec_max>300</write_iops_sec_max><write_iops_sec_max_length>5</write_iops_sec_max_length>\
    <write_iops_sec>200</write_iops_sec></throttlegroup></throttlegroups>";

/// What the disks of a guest have each for itself.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// The files that are handed over, by the names of their groups.
    pub(super) groups: Vec<(String, PathBuf)>,
    /// The numbers of the whole chains.
    used: Vec<usize>,
    virtio: u8,
    scsi: u8,
    sata: u8,
    ide: u8,
    floppy: u8,
}

impl Targets {
    /// A name that is free, and its bus.
    fn next(&mut self, bus: &'static str) -> (String, &'static str) {
        // Names of one prefix are of several buses, so each has its own stretch of the alphabet.
        let (prefix, from, count) = match bus {
            "scsi" => ("sd", b'a', &mut self.scsi),
            "sata" => ("sd", b'h', &mut self.sata),
            "ide" => ("hd", b'a', &mut self.ide),
            "fdc" => ("fd", b'a', &mut self.floppy),
            _ => ("vd", b'a', &mut self.virtio),
        };
        let letter = char::from(from + *count);
        *count += 1;
        (format!("{prefix}{letter}"), bus)
    }
}

/// The images that are in the pool as well, and their formats.
pub(super) const VOLUMES: [(&str, &str); 9] = [
    ("raw.alone", "raw"),
    ("qcow2.alone", "qcow2"),
    ("over-raw", "qcow2"),
    ("over-vmdk", "qcow2"),
    ("two-over-raw", "qcow2"),
    ("mixed", "qcow2"),
    ("vdi.alone", "vdi"),
    ("vmdk.alone", "vmdk"),
    ("qed-over-raw", "qed"),
];

fn word(dice: &mut Dice, words: &[&'static str]) -> &'static str {
    words[dice.index(words.len())]
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&apos;")
}

/// What stands around `<source>`.
struct Parts {
    kind: &'static str,
    device: &'static str,
    /// The format, where it is said.
    format: Option<&'static str>,
    source: String,
    backing: String,
    readonly: bool,
    /// A whole disk that a guest writes: it may have whatever a disk may have.
    plain: bool,
}

/// A disk on something: of a guest that has an odd one, and which is its first; or of one that may have disks on servers.
pub(super) fn disk(
    forest: &Forest,
    dice: &mut Dice,
    targets: &mut Targets,
    odd: bool,
    first: bool,
) -> String {
    let parts = match dice.below(100) {
        _ if odd && first => self::odd(forest, dice),
        0..60 => whole(forest, dice, targets, false),
        60..82 if !odd => network(forest, dice),
        60..82 => whole(forest, dice, targets, false),
        82..88 => volume(forest, dice),
        88..93 => directory(forest, dice, targets),
        93..97 => lun(forest, dice),
        _ => empty(dice, targets),
    };
    element(dice, targets, parts)
}

/// A disk of which XML gives the whole chain, so that nobody has to look at it: also such as are not there.
pub(super) fn closed(forest: &Forest, dice: &mut Dice, targets: &mut Targets) -> String {
    let parts = match dice.below(100) {
        0..35 => whole(forest, dice, targets, true),
        35..55 => network(forest, dice),
        55..65 => nvme(dice),
        65..75 => over_elsewhere(forest, dice),
        75..80 => Parts {
            kind: "vhostuser",
            device: "disk",
            format: Some("raw"),
            source: format!(
                "<source type='unix' path='/run/vhost'>{}</source>",
                dice.one_of(&["", "<reconnect enabled='yes' timeout='10'/>"])
            ),
            backing: String::new(),
            readonly: false,
            plain: false,
        },
        80..86 => volume(forest, dice),
        86..91 => directory(forest, dice, targets),
        91..95 => lun(forest, dice),
        _ => empty(dice, targets),
    };
    let parts = match parts.format {
        Some("qcow2" | "qcow" | "qed" | "vmdk") if parts.backing.is_empty() => Parts {
            backing: "<backingStore/>".to_owned(),
            ..parts
        },
        _ => parts,
    };
    element(dice, targets, parts)
}

fn directory(forest: &Forest, dice: &mut Dice, targets: &Targets) -> Parts {
    Parts {
        kind: "dir",
        device: if targets.floppy < 2 {
            word(dice, &["disk", "floppy"])
        } else {
            "disk"
        },
        format: Some(word(dice, &["fat", "fat", "fat", "raw"])),
        source: format!("<source dir='{}'/>", forest.folder.file("folder").display()),
        backing: String::new(),
        readonly: dice.chance(80),
        plain: false,
    }
}

/// A drive without a medium.
fn empty(dice: &mut Dice, targets: &Targets) -> Parts {
    Parts {
        kind: word(dice, &["file", "block"]),
        device: if targets.floppy < 2 {
            word(dice, &["cdrom", "floppy"])
        } else {
            "cdrom"
        },
        format: *dice.one_of(&[None, Some("raw")]),
        source: String::new(),
        backing: String::new(),
        readonly: false,
        plain: false,
    }
}

/// A namespace of an NVMe controller.
fn nvme(dice: &mut Dice) -> Parts {
    let format = word(dice, &["raw", "raw", "qcow2"]);
    let managed = dice.one_of(&["", " managed='yes'", " managed='no'"]);
    let encryption = if dice.chance(20) {
        format!("<encryption format='luks'><secret type='passphrase' uuid='{PASSPHRASE}'/></encryption>")
    } else {
        String::new()
    };
    let readonly = dice.chance(20);
    Parts {
        kind: "nvme",
        device: "disk",
        format: Some(format),
        source: format!(
            "<source type='pci'{managed} namespace='{}'><address domain='0x0000' bus='0x{:02x}' slot='0x00' \
             function='0x{}'/>{encryption}</source>",
            dice.within(1..4),
            dice.below(256),
            dice.below(8),
        ),
        backing: String::new(),
        readonly,
        plain: !readonly,
    }
}

/// An overlay here, over layers that are elsewhere.
fn over_elsewhere(forest: &Forest, dice: &mut Dice) -> Parts {
    let mut backing = String::from("<backingStore/>");
    for _ in 0..dice.within(1..4) {
        let below = match dice.below(3) {
            0 => nvme(dice),
            _ => network(forest, dice),
        };
        backing = format!(
            "<backingStore type='{}'><format type='{}'/>{}{backing}</backingStore>",
            below.kind,
            if backing == "<backingStore/>" {
                below.format.unwrap_or("raw")
            } else {
                "qcow2"
            },
            below.source,
        );
    }
    let readonly = dice.chance(15);
    Parts {
        kind: "file",
        device: "disk",
        format: Some("qcow2"),
        source: format!("<source file='{}'/>", forest.folder.file("qcow2.alone").display()),
        backing,
        readonly,
        plain: !readonly,
    }
}

fn element(dice: &mut Dice, targets: &mut Targets, parts: Parts) -> String {
    let (target, bus) = targets.next(match parts.device {
        "floppy" => "fdc",
        "cdrom" if targets.ide < 4 => word(dice, &["ide", "sata", "scsi"]),
        "cdrom" => word(dice, &["sata", "scsi"]),
        "lun" => "scsi",
        "disk" if parts.kind == "vhostuser" => "virtio",
        // libvirt refuses some of these.
        "disk" if parts.readonly && dice.chance(95) => word(dice, &["virtio", "scsi"]),
        _ => word(dice, &["virtio", "virtio", "virtio", "scsi", "sata"]),
    });
    let (driver, rest) = around(dice, &parts);
    let Parts {
        kind,
        device,
        source,
        backing,
        ..
    } = parts;
    format!(
        "<disk type='{kind}' device='{device}'>{driver}\n  {source}{backing}\n  <target dev='{target}' bus='{bus}'/>{rest}\n</disk>"
    )
}

/// `<driver>`, and what stands behind `<target>`.
fn around(dice: &mut Dice, parts: &Parts) -> (String, String) {
    if parts.kind == "vhostuser" && dice.chance(85) {
        // It takes nothing else.
        return (String::new(), String::new());
    }
    let mut driver = String::new();
    let mut say = |name: &str, value: &str| driver.push_str(&format!(" {name}='{value}'"));
    if let Some(format) = parts.format {
        say("type", format);
    }
    let mut direct = false;
    if dice.chance(40) {
        let cache = word(
            dice,
            &[
                "none",
                "writeback",
                "unsafe",
                "directsync",
                "writethrough",
                "default",
            ],
        );
        direct = matches!(cache, "none" | "directsync");
        say("cache", cache);
    }
    if dice.chance(25) {
        say(
            "io",
            if direct {
                word(dice, &["native", "threads"])
            } else {
                "threads"
            },
        );
    }
    if dice.chance(30) {
        say("discard", word(dice, &["unmap", "ignore"]));
    }
    if dice.chance(30) {
        say("detect_zeroes", word(dice, &["on", "unmap", "off"]));
    }
    if parts.plain && dice.chance(20) {
        say("copy_on_read", word(dice, &["on", "off"]));
    }
    if parts.format == Some("qcow2") && !parts.readonly && dice.chance(15) {
        say("discard_no_unref", word(dice, &["on", "off"]));
    }
    if dice.chance(10) {
        say("error_policy", "stop");
    }
    let children = match parts.format {
        Some("qcow2") if dice.chance(15) => {
            "<metadata_cache><max_size unit='KiB'>128</max_size></metadata_cache>"
        }
        _ => "",
    };
    let driver = match children {
        "" => format!("\n  <driver name='qemu'{driver}/>"),
        children => format!("\n  <driver name='qemu'{driver}>{children}</driver>"),
    };
    let mut rest = String::new();
    if parts.readonly {
        rest.push_str("<readonly/>");
    }
    if parts.plain {
        match dice.below(20) {
            0 | 1 => rest.push_str("<throttlefilters><throttlefilter group='slow'/></throttlefilters>"),
            2 => rest.push_str(
                "<throttlefilters><throttlefilter group='few'/><throttlefilter group='slow'/></throttlefilters>",
            ),
            3 | 4 => rest.push_str("<iotune><total_bytes_sec>1000000</total_bytes_sec></iotune>"),
            5 | 6 => rest.push_str("<shareable/>"),
            7 => rest.push_str("<serial>number</serial>"),
            9 if parts.kind == "file" => rest.push_str("<transient/>"),
            8 => rest.push_str("<mirror type='file' job='copy'><format type='raw'/><source file='/m'/></mirror>"),
            _ => {}
        }
    }
    (driver, rest)
}

/// A chain that is whole, of which XML gives some or all, or says something else.
fn whole(forest: &Forest, dice: &mut Dice, targets: &mut Targets, closed: bool) -> Parts {
    let free: Vec<_> = (0..forest.whole.len())
        .filter(|number| !targets.used.contains(number))
        .collect();
    let number = *dice.one_of(&free);
    targets.used.push(number);
    let chain = &forest.whole[number];
    let top = &chain[0];
    let given = match dice.below(10) {
        _ if closed || chain.iter().any(|layer| layer.luks) => chain.len(),
        0..4 => 1,
        4..7 => chain.len(),
        _ => 1 + dice.index(chain.len()),
    };
    let backing = match below(dice, &chain[1..given], given == chain.len()) {
        open if closed && !open.contains("<backingStore/>") => {
            let end = open.find("</backingStore>").unwrap_or(open.len());
            let (before, after) = open.split_at(end);
            format!("{before}<backingStore/>{after}")
        }
        backing => backing,
    };
    let mut source = source(dice, top, given == chain.len());
    // What is below it libvirt alone could see.
    let handed =
        !closed && chain.len() == 1 && !top.block && !top.luks && top.store.is_none() && dice.chance(20);
    if handed {
        let group = format!("group{number}");
        source = source.replacen("<source", &format!("<source fdgroup='{group}'"), 1);
        targets.groups.push((group, top.path.clone().into()));
    }
    let device = word(dice, &["disk", "disk", "disk", "disk", "disk", "disk", "cdrom"]);
    let readonly = device == "disk" && dice.chance(15);
    Parts {
        kind: if top.block { "block" } else { "file" },
        device,
        // What is not said is raw.
        format: if top.format == "raw" && !top.luks && dice.chance(20) {
            None
        } else {
            Some(top.format)
        },
        source,
        backing,
        readonly,
        plain: device == "disk" && !readonly && !handed,
    }
}

/// `<backingStore>` elements of these layers.
fn below(dice: &mut Dice, layers: &[Layer], whole: bool) -> String {
    let mut nested = match dice.below(10) {
        0..4 if whole => "<backingStore/>".to_owned(),
        // Now and then it hides what is there.
        0 => "<backingStore/>".to_owned(),
        _ => String::new(),
    };
    for layer in layers.iter().rev() {
        let index = if dice.chance(20) { " index='7'" } else { "" };
        let cache = if layer.format == "qcow2" && dice.chance(20) {
            "<metadata_cache><max_size>65536</max_size></metadata_cache>"
        } else {
            ""
        };
        nested = format!(
            "\n<backingStore type='{}'{index}><format type='{}'>{cache}</format>{}{nested}</backingStore>",
            if layer.block { "block" } else { "file" },
            layer.format,
            source(dice, layer, whole),
        );
    }
    nested
}

fn source(dice: &mut Dice, layer: &Layer, whole: bool) -> String {
    let mut attributes = String::new();
    if dice.chance(10) {
        attributes.push_str(" index='3'");
    }
    if dice.chance(10) {
        attributes.push_str(&format!(
            " startupPolicy='{}'",
            dice.one_of(&["mandatory", "optional"])
        ));
    }
    let mut children = String::new();
    if layer.format == "raw" && !layer.luks && dice.chance(25) {
        children.push_str("<slices><slice type='storage' offset='512' size='65536'/></slices>");
    }
    children.push_str(&match dice.below(30) {
        0 | 1 => "<seclabel model='dac' relabel='no'/>".to_owned(),
        2 => "<seclabel model='dac'/>".to_owned(),
        3 | 4 => format!(
            "<seclabel model='dac'><label>+{0}:+{0}</label></seclabel>",
            20_000 + dice.below(9)
        ),
        _ => String::new(),
    });
    if layer.luks {
        let engine = if dice.chance(50) { " engine='qemu'" } else { "" };
        let secret = if dice.chance(50) {
            format!("uuid='{PASSPHRASE}'")
        } else {
            "usage='mine'".to_owned()
        };
        let cipher = if dice.chance(30) {
            "<cipher name='aes' size='256' mode='cbc' hash='sha256'/><ivgen name='plain64' hash='sha256'/>"
        } else {
            ""
        };
        children.push_str(&format!(
            "<encryption format='luks'{engine}><secret type='passphrase' {secret}/>{cipher}</encryption>"
        ));
    }
    if let Some(store) = &layer.store
        && (whole || dice.chance(50))
    {
        children.push_str(&format!(
            "<dataStore type='file'><format type='raw'/><source file='{}'/></dataStore>",
            escaped(store)
        ));
    }
    let name = if layer.block { "dev" } else { "file" };
    format!(
        "<source {name}='{}'{attributes}>{children}</source>",
        escaped(&layer.path)
    )
}

/// A chain that breaks somewhere, or goes on where it is not known.
fn odd(forest: &Forest, dice: &mut Dice) -> Parts {
    let top = dice.one_of(&forest.odd);
    let served = format!(
        "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='disk'>\
         <host transport='unix' socket='{}'/></source></backingStore>",
        forest.server.socket
    );
    let given = match dice.below(12) {
        // A chain that is not the headers'.
        0 | 1 if top.path.contains("uri") || top.path.contains("nbd") => "",
        0 => "<backingStore type='file'><format type='qcow2'/><source file='/nowhere'/></backingStore>",
        1 => {
            "<backingStore type='file'><format type='qcow2'/><source file='/nowhere'/><backingStore/></backingStore>"
        }
        2 => "<backingStore/>",
        3 => "<backingStore type='file'><source file='/nowhere'/></backingStore>",
        4 => &served,
        _ => "",
    };
    Parts {
        kind: "file",
        device: word(dice, &["disk", "disk", "disk", "cdrom"]),
        format: Some(top.format),
        source: source(dice, top, false),
        backing: given.to_owned(),
        readonly: dice.chance(20),
        plain: false,
    }
}

fn volume(forest: &Forest, dice: &mut Dice) -> Parts {
    let (volume, format) = *dice.one_of(&VOLUMES);
    let volume = if dice.chance(15) { "none" } else { volume };
    Parts {
        kind: "volume",
        device: word(dice, &["disk", "disk", "cdrom"]),
        format: if dice.chance(60) { Some(format) } else { None },
        source: format!("<source pool='{}' volume='{volume}'/>", forest.pool()),
        backing: String::new(),
        readonly: dice.chance(50),
        plain: false,
    }
}

fn lun(forest: &Forest, dice: &mut Dice) -> Parts {
    let reservations = dice.one_of(&[
        "",
        "<reservations managed='yes'/>",
        "<reservations managed='no'><source type='unix' path='/run/pr.sock' mode='client'/></reservations>",
    ]);
    Parts {
        kind: "block",
        device: "lun",
        format: Some("raw"),
        source: format!("<source dev='{}'>{reservations}</source>", forest.loops[0].path),
        backing: String::new(),
        readonly: dice.chance(20),
        plain: false,
    }
}

fn network(forest: &Forest, dice: &mut Dice) -> Parts {
    let mut attributes = String::new();
    let mut children = String::new();
    let protocol = word(
        dice,
        &[
            "nbd", "nbd", "here", "rbd", "rbd", "iscsi", "http", "https", "https", "ftp", "ssh", "nfs",
            "gluster", "tftp",
        ],
    );
    let host = word(
        dice,
        &[
            "<host name='h'/>",
            "<host name='h' port='1234'/>",
            "<host name='::1'/>",
        ],
    );
    let name = match protocol {
        "rbd" | "gluster" => "pool/image",
        "iscsi" => dice.one_of(&["iqn.2020-01.a.b:c", "iqn.2020-01.a.b:c/3"]),
        "here" => "disk",
        _ => "dir/it&apos;s",
    };
    let secret = |kind: usize| {
        let (kind, usage) = KEYS[kind];
        format!("<auth username='me'><secret type='{kind}' usage='{usage}'/></auth>")
    };
    match protocol {
        "here" => children.push_str(&format!(
            "<host transport='unix' socket='{}'/>",
            forest.server.socket
        )),
        "nfs" => children.push_str("<host name='h'/>"),
        _ => children.push_str(host),
    }
    match protocol {
        "nbd" => {
            if dice.chance(30) {
                attributes.push_str(" tls='yes'");
                if dice.chance(50) {
                    attributes.push_str(" tlsHostname='other'");
                }
            }
            if dice.chance(30) {
                children.push_str("<reconnect delay='10'/>");
            }
        }
        "rbd" => {
            if dice.chance(30) {
                children.push_str("<host name='i'/>");
            }
            if dice.chance(30) {
                children.push_str("<snapshot name='s'/>");
            }
            if dice.chance(30) {
                children.push_str("<config file='/etc/ceph.conf'/>");
            }
            if dice.chance(50) {
                children.push_str(&secret(0));
            }
            if dice.chance(30) {
                children.push_str(&format!(
                    "<encryption format='{}' engine='librbd'><secret type='passphrase' uuid='{PASSPHRASE}'/>{}</encryption>",
                    dice.one_of(&["luks", "luks2", "luks-any"]),
                    if dice.chance(30) { "<secret type='passphrase' usage='mine'/>" } else { "" },
                ));
            }
        }
        "iscsi" => {
            if dice.chance(50) {
                children.push_str("<initiator><iqn name='iqn.2021-02.me:us'/></initiator>");
            }
            if dice.chance(50) {
                children.push_str(&secret(1));
            }
        }
        "http" | "https" => {
            if dice.chance(30) {
                attributes.push_str(" query='a=b&amp;c'");
            }
            if protocol == "https" && dice.chance(50) {
                children.push_str("<ssl verify='no'/>");
            }
            if dice.chance(40) {
                children
                    .push_str("<cookies><cookie name='a'>b</cookie><cookie name='c'>d</cookie></cookies>");
            }
            if dice.chance(30) {
                children.push_str("<readahead size='65536'/>");
            }
            if dice.chance(30) {
                children.push_str("<timeout seconds='9'/>");
            }
        }
        "ssh" if dice.chance(50) => {
            children.push_str("<knownHosts path='/k'/><identity username='me' keyfile='/key'/>")
        }
        "nfs" if dice.chance(50) => children.push_str("<identity user='+12' group='+34'/>"),
        _ => {}
    }
    let format = word(dice, &["raw", "qcow2", "qcow2"]);
    let slice = if format == "raw" && dice.chance(15) {
        "<slices><slice type='storage' offset='1024' size='2048'/></slices>"
    } else {
        ""
    };
    let device = word(dice, &["disk", "disk", "disk", "cdrom"]);
    let readonly = device == "disk" && dice.chance(30);
    Parts {
        kind: "network",
        device,
        // What is served is raw.
        format: Some(if protocol == "here" { "raw" } else { format }),
        source: format!(
            "<source protocol='{}' name='{name}'{attributes}>{children}{slice}</source>",
            if protocol == "here" { "nbd" } else { protocol }
        ),
        backing: (word(dice, &["", "", "<backingStore/>"])).to_owned(),
        readonly,
        plain: device == "disk" && !readonly,
    }
}
