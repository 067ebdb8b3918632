//! `qemu-img measure`: how large a new image would be.

use super::create::{check_cluster_size, check_refcount_bits, preallocation};
use super::create_options::{Chosen, MADE_BY_QEMU, Use, creatable};
use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::keyval;
use super::map::Mapped;
use super::open::{self, Purpose};
use super::program::{self, Program, Result, error, output_is_json};
use super::qdict::{Object, Value};
use super::size;
use catena::Disk;
use catena::ops::measure::{Kind, Request, measure};
use catena_engine::StorageBytes;
use catena_format::qcow2::{Autoclear, Bitmap, ClusterBits};
use std::sync::Arc;

pub const OPTIONS: Options = Options {
    short: "hf:l:o:O:U",
    long: &[
        long("help", 'h', Nothing),
        long("target-format", 'O', Argument),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        long("options", 'o', Argument),
        long("snapshot", 'l', Argument),
        word("object", Argument),
        word("output", Argument),
        word("size", Argument),
        long("force-share", 'U', Nothing),
    ],
};

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let (mut target, mut snapshot, mut lists) = ("raw".to_owned(), None, None);
    let (mut json, mut bytes) = (false, None);
    let mut image = ImageArgs::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('O') => target = value,
            Key::Letter('l') => {
                snapshot = Some(snapshot_of(program, &value)?);
            }
            Key::Letter('o') => keyval::join(&mut lists, &value).map_err(error)?,
            Key::Word("output") => json = output_is_json(&value)?,
            Key::Word("size") => {
                bytes = Some(size::argument("image size", &value, 0, size::MAX).map_err(error)?);
            }
            _ => image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let name = match others.as_slice() {
        [] => None,
        [name] => Some(name),
        _ => return Err(error("At most one filename argument is allowed.")),
    };
    if name.is_none() && (image.image_opts || image.format.is_some() || snapshot.is_some()) {
        return Err(error("--image-opts, -f, and -l require a filename argument."));
    }
    match (name, bytes) {
        (None, None) => return Err(error("Either --size N or one filename must be specified.")),
        (Some(_), Some(_)) => return Err(error("--size N cannot be used together with a filename.")),
        _ => {}
    }
    image.check()?;
    let opened = name
        .map(|name| image.open(program, name, Purpose::default()))
        .transpose()?;
    let disk: Option<Arc<dyn Disk>> = match &opened {
        None => None,
        Some(opened) => Some(match &snapshot {
            Some(snapshot) => Arc::new(
                opened
                    .snapshot(snapshot)
                    .map_err(|text| error(format!("Failed to load snapshot: {text}")))?,
            ),
            None => Arc::new(Mapped::new(opened)?),
        }),
    };
    if !matches!(target.as_str(), "raw" | "qcow2") {
        return Err(error(match creatable(&target) {
            // They can be made, or could be elsewhere, which says nothing about how large they get.
            Ok(()) => format!("Block driver '{target}' does not support size measurement"),
            Err(_) if MADE_BY_QEMU.contains(&target.as_str()) && target != "luks" => {
                format!("Block driver '{target}' does not support size measurement")
            }
            Err(text) => text,
        }));
    }
    let mut chosen = Chosen::of(&target, Use::Create);
    if let Some(lists) = &lists
        && let Err(text) = chosen.parse(lists)
    {
        program.say(text);
        return Err(error(format!("Invalid options for file format '{target}'")));
    }
    let kind = match target.as_str() {
        "qcow2" => qcow2(&chosen).map_err(error)?,
        _ => Kind::Raw,
    };
    let bitmaps = match &opened {
        Some(opened) if chosen.get("compat") != Some("0.10") => bitmaps(opened)?,
        _ => None,
    };
    let request = Request {
        size: bytes.unwrap_or_default(),
        kind,
    };
    let sizes =
        measure(&request, disk.as_deref(), bitmaps.as_deref()).map_err(|failed| error(failed.message()))?;
    if json {
        let mut object = Object::new()
            .with("required", sizes.required)
            .with("fully-allocated", sizes.fully_allocated);
        if let Some(bitmaps) = sizes.bitmaps {
            object.set("bitmaps", bitmaps);
        }
        program::print(&format!("{}\n", Value::from(object).to_pretty_json()));
    } else {
        let bitmaps = sizes
            .bitmaps
            .map_or_else(String::new, |bytes| format!("bitmaps size: {bytes}\n"));
        program::print(&format!(
            "required size: {}\nfully allocated size: {}\n{bitmaps}",
            sizes.required, sizes.fully_allocated
        ));
    }
    Ok(0)
}

/// What `-l` names: a name, an id, or `snapshot.id=…,snapshot.name=…`.
pub fn snapshot_of(program: &Program, text: &str) -> Result<SnapshotName> {
    if !text.starts_with("snapshot.") {
        return Ok(SnapshotName::Either(text.to_owned()));
    }
    let (mut id, mut name) = (None, None);
    for (key, value) in keyval::parse(text) {
        match key.as_str() {
            "snapshot.id" => id = Some(value),
            "snapshot.name" => name = Some(value),
            other => {
                program.say(format!("Invalid parameter '{other}'"));
                return Err(error(format!("Failed in parsing snapshot param '{text}'")));
            }
        }
    }
    Ok(SnapshotName::Exact { id, name })
}

/// Which snapshot is meant.
#[derive(Clone, Debug)]
pub enum SnapshotName {
    /// By id, else by name.
    Either(String),
    /// By what is given.
    Exact {
        /// Its id.
        id: Option<String>,
        /// Its name.
        name: Option<String>,
    },
}

fn bitmaps(opened: &open::Opened) -> Result<Option<Vec<Bitmap>>> {
    let layer = opened.top()?;
    let (Some(header), Some(file)) = (&layer.header, &layer.file) else {
        return Ok(None);
    };
    if header.version == catena_format::qcow2::Version::V2 {
        return Ok(None);
    }
    if !header.autoclear.contains(Autoclear::BITMAPS) {
        return Ok(Some(Vec::new()));
    }
    let bytes = StorageBytes::new(&file.storage).map_err(error)?;
    Bitmap::read_all(header, &bytes).map(Some).map_err(error)
}

fn qcow2(chosen: &Chosen) -> Result<Kind, String> {
    let cluster_size = chosen.size("cluster_size").unwrap_or(65_536);
    let extended_l2 = chosen.switch("extended_l2").unwrap_or_default();
    let old = match chosen.get("compat") {
        None | Some("1.1") => false,
        Some("0.10") => true,
        Some(other) => return Err(format!("Invalid compatibility level: '{other}'")),
    };
    check_cluster_size(cluster_size, extended_l2, old)?;
    let bits = check_refcount_bits(chosen.number("refcount_bits").unwrap_or(16), old)
        .map_err(|text| text.replace("use version=v3", "use compat=1.1"))?;
    let word = chosen.get("preallocation").unwrap_or("off");
    let preallocation = preallocation(word).ok_or_else(|| format!("invalid parameter value: {word}"))?;
    if chosen.get("encrypt.format").is_some() {
        return Err("Parameter 'encrypt.key-secret' is required for cipher".to_owned());
    }
    Ok(Kind::Qcow2 {
        cluster_bits: ClusterBits::new(cluster_size.trailing_zeros()).map_err(|error| error.to_string())?,
        refcount_order: bits.trailing_zeros(),
        extended_l2,
        backing: chosen.get("backing_file").is_some(),
        preallocation,
    })
}
