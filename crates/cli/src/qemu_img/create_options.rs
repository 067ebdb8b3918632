//! The `-o` options of new images: which there are, of what type, and how they are listed and printed.

use super::keyval;
use super::nodes;
use super::program::{Result, error};

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A size with an optional unit.
    Size,
    /// A number.
    Number,
    /// On or off.
    Switch,
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Its key.
    pub name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
}

const fn option(name: &'static str, kind: Kind, help: &'static str) -> Description {
    Description {
        name,
        kind,
        default: None,
        help,
    }
}

const fn with_default(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Description {
    Description {
        name,
        kind,
        default: Some(default),
        help,
    }
}

const SIZE: Description = option("size", Kind::Size, "Virtual disk size");

const QCOW2: &[Description] = &[
    option(
        "encryption",
        Kind::Switch,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    option(
        "encrypt.format",
        Kind::Text,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    option(
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    option(
        "encrypt.cipher-alg",
        Kind::Text,
        "Name of encryption cipher algorithm",
    ),
    option(
        "encrypt.cipher-mode",
        Kind::Text,
        "Name of encryption cipher mode",
    ),
    option("encrypt.ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    option(
        "encrypt.ivgen-hash-alg",
        Kind::Text,
        "Name of IV generator hash algorithm",
    ),
    option(
        "encrypt.hash-alg",
        Kind::Text,
        "Name of encryption hash algorithm",
    ),
    option(
        "encrypt.iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    with_default("cluster_size", Kind::Size, "65536", "qcow2 cluster size"),
    with_default("extended_l2", Kind::Switch, "off", "Extended L2 tables"),
    option(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    with_default(
        "compression_type",
        Kind::Text,
        "zlib",
        "Compression method used for image cluster compression",
    ),
    SIZE,
    option(
        "compat",
        Kind::Text,
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    option("backing_file", Kind::Text, "File name of a base image"),
    option("backing_fmt", Kind::Text, "Image format of the base image"),
    option("data_file", Kind::Text, "File name of an external data file"),
    option(
        "data_file_raw",
        Kind::Switch,
        "The external data file must stay valid as a raw image",
    ),
    with_default("lazy_refcounts", Kind::Switch, "off", "Postpone refcount updates"),
    with_default(
        "refcount_bits",
        Kind::Number,
        "16",
        "Width of a reference count entry in bits",
    ),
];

const RAW: &[Description] = &[SIZE];

const FILE: &[Description] = &[
    SIZE,
    option(
        "nocow",
        Kind::Switch,
        "Turn off copy-on-write (valid only on btrfs)",
    ),
    option(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, falloc, full)",
    ),
    option(
        "extent_size_hint",
        Kind::Size,
        "Extent size hint for the image file, 0 to disable",
    ),
];

const AMEND: &[Description] = &[
    option(
        "encrypt.state",
        Kind::Text,
        "Select new state of affected keyslots (active/inactive)",
    ),
    option(
        "encrypt.keyslot",
        Kind::Number,
        "Select a single keyslot to modify explicitly",
    ),
    option(
        "encrypt.old-secret",
        Kind::Text,
        "Select all keyslots that match this password",
    ),
    option(
        "encrypt.new-secret",
        Kind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    option(
        "encrypt.iter-time",
        Kind::Number,
        "Time to spend in PBKDF in milliseconds",
    ),
    SIZE,
    option(
        "compat",
        Kind::Text,
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    option("backing_file", Kind::Text, "File name of a base image"),
    option("backing_fmt", Kind::Text, "Image format of the base image"),
    option("data_file", Kind::Text, "File name of an external data file"),
    option(
        "data_file_raw",
        Kind::Switch,
        "The external data file must stay valid as a raw image",
    ),
    with_default("lazy_refcounts", Kind::Switch, "off", "Postpone refcount updates"),
    with_default(
        "refcount_bits",
        Kind::Number,
        "16",
        "Width of a reference count entry in bits",
    ),
];

/// Options that have been given, and those that there are.
#[derive(Clone, Debug)]
pub struct Chosen {
    known: Vec<Description>,
    given: Vec<(&'static str, String)>,
}

/// What is done with the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A new image in a file.
    Create,
    /// The format alone.
    Format,
    /// Changes to an image.
    Amend,
}

/// Formats and protocols in which QEMU makes images and we do not: a QEMU that was built without them does not know them.
pub const MADE_BY_QEMU: &[&str] = &[
    "gluster",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "parallels",
    "qcow",
    "qed",
    "rbd",
    "ssh",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];

/// The sentence for a format that cannot be created, if it is one of those.
pub fn creatable(format: &str) -> Result<(), String> {
    match format {
        "raw" | "qcow2" | "file" => Ok(()),
        known if nodes::is_driver(known) && !MADE_BY_QEMU.contains(&known) => {
            Err(format!("Format driver '{known}' does not support image creation"))
        }
        other => Err(format!("Unknown file format '{other}'")),
    }
}

/// The sentence for a format that nobody knows.
pub fn known(format: &str) -> Result<(), String> {
    match nodes::is_driver(format) && !MADE_BY_QEMU.contains(&format) {
        true => Ok(()),
        false => Err(format!("Unknown file format '{format}'")),
    }
}

/// The sentence for a name whose protocol makes no files.
pub fn check_protocol(name: &str) -> Result<(), String> {
    match nodes::protocol_of(name) {
        None | Some("file") => Ok(()),
        Some(protocol) => Err(format!("Unknown protocol '{protocol}'")),
    }
}

impl Chosen {
    /// None given yet.
    pub fn of(format: &str, use_: Use) -> Self {
        let own = match (format, use_) {
            ("qcow2", Use::Amend) => AMEND,
            ("qcow2", _) => QCOW2,
            ("file", _) => FILE,
            _ => RAW,
        };
        let mut known = own.to_vec();
        if use_ == Use::Create {
            known.extend(
                FILE.iter()
                    .filter(|option| !own.iter().any(|known| known.name == option.name)),
            );
        }
        Self {
            known,
            given: Vec::new(),
        }
    }

    /// Takes a list of options. An error is the sentence alone.
    pub fn parse(&mut self, list: &str) -> Result<(), String> {
        for (key, value) in keyval::parse(list) {
            self.set(&key, value)?;
        }
        Ok(())
    }

    /// Sets one.
    pub fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        let known = self.known.iter().find(|known| known.name == key);
        let Some(known) = known else {
            return Err(format!("Invalid parameter '{key}'"));
        };
        match known.kind {
            Kind::Text => {}
            Kind::Size => drop(keyval::size(key, &value)?),
            Kind::Number => drop(keyval::number(key, &value)?),
            Kind::Switch => drop(keyval::on_off(key, &value)?),
        }
        let name = known.name;
        match self.given.iter_mut().find(|(given, _)| *given == name) {
            Some((_, old)) => *old = value,
            None => self.given.push((name, value)),
        }
        Ok(())
    }

    /// Whether the format has such an option.
    pub fn has(&self, key: &str) -> bool {
        self.known.iter().any(|known| known.name == key)
    }

    /// A value that was given.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.given
            .iter()
            .find(|(given, _)| *given == key)
            .map(|(_, value)| value.as_str())
    }

    /// All that were given, in the order of the list.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.known
            .iter()
            .filter_map(|known| Some((known.name, self.get(known.name)?)))
    }

    /// A size that was given.
    pub fn size(&self, key: &str) -> Option<u64> {
        keyval::size(key, self.get(key)?).ok()
    }

    /// A number that was given.
    pub fn number(&self, key: &str) -> Option<u64> {
        keyval::number(key, self.get(key)?).ok()
    }

    /// A switch that was given.
    pub fn switch(&self, key: &str) -> Option<bool> {
        keyval::on_off(key, self.get(key)?).ok()
    }

    /// All values with the defaults, as the line `Formatting …` has them.
    pub fn line(&self) -> String {
        let shown = self.known.iter().filter_map(|known| {
            let value = match (self.get(known.name), known.kind) {
                (Some(given), Kind::Size) => keyval::size(known.name, given).ok()?.to_string(),
                (Some(given), Kind::Number) => keyval::number(known.name, given).ok()?.to_string(),
                (Some(given), _) => given.replace(',', ",,"),
                (None, _) => known.default?.to_owned(),
            };
            Some(format!("{}={value}", known.name))
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    /// The options that there are, as `-o help` lists them.
    pub fn list(&self, heading: &str) -> String {
        let mut known = self.known.clone();
        known.sort_by_key(|known| known.name);
        let mut text = format!("{heading}:\n");
        for option in known {
            let kind = match option.kind {
                Kind::Text => "str",
                Kind::Size => "size",
                Kind::Number => "num",
                Kind::Switch => "bool (on/off)",
            };
            let name = format!("  {}=<{kind}>", option.name);
            text.push_str(&format!("{name:<24} - {}\n", option.help));
        }
        text
    }
}

/// Answers `-o help` of a subcommand that makes an image.
pub fn print_help(filename: Option<&str>, format: &str) -> Result<u8> {
    creatable(format).map_err(error)?;
    let text = match filename {
        Some(_) => Chosen::of(format, Use::Create).list("Supported options"),
        None => {
            let list = Chosen::of(format, Use::Format).list(&format!("Supported {format} options"));
            format!(
                "{list}\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n"
            )
        }
    };
    super::program::print(&text);
    Ok(0)
}
