//! `qemu-img info`: what an image says about itself, and with `--backing-chain` those below it too.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::nodes;
use super::open::{self, Opened, Purpose};
use super::program::{self, Program, Result, error, output_is_json, usage};
use super::qdict::{Object, Value, write_lines};
use super::size::human;
use super::snapshots;
use catena::{End, Format, Layer};
use catena_engine::StorageBytes;
use catena_format::Bytes;
use catena_format::qcow2::{
    Autoclear, Bitmap, Compatible, Compression, CryptMethod, Header, Incompatible, Snapshot, Version,
};
use catena_storage::Storage;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

pub const OPTIONS: Options = Options {
    short: "hf:bU",
    long: &[
        long("help", 'h', Nothing),
        long("format", 'f', Argument),
        word("output", Argument),
        long("backing-chain", 'b', Nothing),
        word("object", Argument),
        word("image-opts", Nothing),
        long("force-share", 'U', Nothing),
    ],
};

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let (mut json, mut chain) = (false, false);
    let mut image = ImageArgs::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('b') => chain = true,
            Key::Word("output") => json = output_is_json(&value)?,
            _ => image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let [name] = others.as_slice() else {
        return Err(usage("Expecting one image file name"));
    };
    image.check()?;
    let opened = image.open(
        program,
        name,
        Purpose {
            alone: true,
            ..Purpose::default()
        },
    )?;
    let images = if chain {
        whole_chain(&opened, image.shared)?
    } else {
        let layer = opened.top()?;
        vec![Image::of(layer, &opened.node.shown(), &opened.node)?]
    };
    if json {
        let value = if chain {
            Value::List(images.iter().map(|image| image.json().into()).collect())
        } else {
            images.first().map_or(Value::Null, |image| image.json().into())
        };
        program::print(&format!("{}\n", value.to_pretty_json()));
    } else {
        let texts: Vec<_> = images.iter().map(Image::text).collect();
        program::print(&texts.join("\n"));
    }
    Ok(0)
}

/// The image and all below it, each opened as it would be alone.
fn whole_chain(opened: &Opened, shared: bool) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    let mut seen = HashSet::new();
    let mut name = opened.node.shown();
    for (depth, layer) in opened.chain.layers.iter().enumerate() {
        if depth > 0 {
            let text = layer
                .link
                .as_ref()
                .map(|link| link.text.as_str())
                .unwrap_or_default();
            name = open::backing_name(&name, text);
        }
        if !seen.insert(name.clone()) {
            return Err(looped(&name));
        }
        let could_not = |text: String| error(format!("Could not open '{name}': {text}"));
        if depth > 0
            && let Some(file) = &layer.file
        {
            // Alone, a raw image is shared with everybody.
            open::lock(&file.storage, &name, layer.format, shared, false, 0).map_err(could_not)?;
        }
        let node = nodes::Node {
            filename: name.clone(),
            ..nodes::Node::default()
        };
        images.push(Image::of(
            layer,
            &name,
            if depth == 0 { &opened.node } else { &node },
        )?);
    }
    if let End::Broken(broken) = &opened.chain.end
        && let Some(link) = &broken.link
    {
        let next = open::backing_name(&name, &link.text);
        if seen.contains(&next) {
            return Err(looped(&next));
        }
        let text = open::why_broken(broken, &name);
        return Err(error(format!("Could not open '{next}': {text}")));
    }
    Ok(images)
}

/// A raw image's last sector counts although it is not whole; one that a qcow2 header speaks of does not.
fn whole_sectors(layer: &Layer, unsized_offset: u64) -> u64 {
    let size = layer.virtual_size().unwrap_or_default();
    match layer.header {
        Some(_) => size - size % 512,
        None => size.saturating_sub(unsized_offset).next_multiple_of(512),
    }
}

fn looped(name: &str) -> program::Failure {
    error(format!("Backing file '{name}' creates an infinite loop."))
}

/// What is told of one image.
struct Image {
    name: String,
    format: &'static str,
    virtual_size: u64,
    allocated: Option<u64>,
    encrypted: bool,
    cluster_size: Option<u64>,
    dirty: bool,
    backing: Option<BackingName>,
    snapshots: Vec<Snapshot>,
    specific: Option<Object>,
    file: Option<File>,
}

struct BackingName {
    recorded: String,
    full: String,
    format: Option<String>,
}

/// The file that an image is in.
struct File {
    name: String,
    protocol: &'static str,
    len: u64,
    allocated: Option<u64>,
}

impl Image {
    fn of(layer: &Layer, name: &str, node: &nodes::Node) -> Result<Self> {
        let storage = layer.file.as_ref().map(|file| &file.storage);
        let allocated = storage
            .and_then(|storage| storage.path()?.metadata().ok())
            .map(|meta| meta.blocks() * 512);
        let len = storage.and_then(|storage| storage.len().ok()).unwrap_or_default();
        let kind = storage
            .and_then(|storage| storage.path()?.metadata().ok())
            .map(|meta| meta.file_type());
        let is_device = kind.is_some_and(|kind| kind.is_block_device() || kind.is_char_device());
        let file = File {
            name: node.filename.clone(),
            protocol: if is_device { "host_device" } else { "file" },
            len: len.next_multiple_of(512),
            allocated,
        };
        let bytes = storage.and_then(|storage| StorageBytes::new(storage).ok());
        let header = layer.header.as_ref();
        let mut snapshots = Vec::new();
        let mut specific = None;
        if let (Some(header), Some(bytes)) = (header, &bytes) {
            let could_not = |text: String| error(format!("Could not open '{name}': {text}"));
            snapshots = snapshots::read(header, bytes).map_err(|fault| could_not(fault.to_string()))?;
            specific = Some(qcow2(header, bytes).map_err(could_not)?);
        }
        let backing = header.and_then(|header| header.backing.as_ref()).map(|backing| {
            let recorded = String::from_utf8_lossy(&backing.name).into_owned();
            BackingName {
                full: match nodes::protocol_of(&recorded) {
                    Some(_) => recorded.clone(),
                    None => nodes::beside(&node.filename, &recorded),
                },
                recorded,
                format: header
                    .and_then(Header::backing_format)
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .filter(|word| !word.is_empty()),
            }
        });
        // A slice without a size ends where the file does.
        let unsized_offset = if node.size.is_none() {
            node.offset.unwrap_or_default()
        } else {
            0
        };
        Ok(Self {
            name: name.to_owned(),
            format: match layer.format {
                Format::Qcow2 => "qcow2",
                _ if node.bare => file.protocol,
                _ => "raw",
            },
            virtual_size: whole_sectors(layer, unsized_offset),
            allocated,
            encrypted: header.is_some_and(|header| header.crypt != CryptMethod::None),
            cluster_size: header.map(|header| header.cluster_bits.size()),
            dirty: header.is_some_and(|header| header.incompatible.contains(Incompatible::DIRTY)),
            backing,
            snapshots,
            specific,
            file: (!node.bare).then_some(file),
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(out, "image: {}\nfile format: {}", self.name, self.format);
        let _ = writeln!(
            out,
            "virtual size: {} ({} bytes)",
            human(self.virtual_size),
            self.virtual_size
        );
        let _ = writeln!(out, "disk size: {}", disk_size(self.allocated));
        if self.encrypted {
            out.push_str("encrypted: yes\n");
        }
        if let Some(size) = self.cluster_size {
            let _ = writeln!(out, "cluster_size: {size}");
        }
        if self.dirty {
            out.push_str("cleanly shut down: no\n");
        }
        if let Some(backing) = &self.backing {
            let _ = write!(out, "backing file: {}", backing.recorded);
            if backing.full != backing.recorded {
                let _ = write!(out, " (actual path: {})", backing.full);
            }
            out.push('\n');
            if let Some(format) = &backing.format {
                let _ = writeln!(out, "backing file format: {format}");
            }
        }
        if !self.snapshots.is_empty() {
            out.push_str(&snapshots::table(&self.snapshots));
        }
        if let Some(specific) = &self.specific {
            out.push_str("Format specific information:\n");
            write_lines(&mut out, 1, specific);
        }
        if let Some(file) = &self.file {
            let _ = writeln!(
                out,
                "Child node '/file':\n    filename: {}\n    protocol type: {}\n    file length: {} ({} bytes)\n    disk size: {}",
                file.name,
                file.protocol,
                human(file.len),
                file.len,
                disk_size(file.allocated)
            );
        }
        out
    }

    fn json(&self) -> Object {
        let mut object = Object::new()
            .with("virtual-size", self.virtual_size)
            .with("filename", self.name.as_str())
            .with("format", self.format)
            .with("dirty-flag", self.dirty);
        if let Some(allocated) = self.allocated {
            object.set("actual-size", allocated);
        }
        if let Some(size) = self.cluster_size {
            object.set("cluster-size", size);
        }
        if self.encrypted {
            object.set("encrypted", true);
        }
        if let Some(backing) = &self.backing {
            object.set("backing-filename", backing.recorded.as_str());
            object.set("full-backing-filename", backing.full.as_str());
            if let Some(format) = &backing.format {
                object.set("backing-filename-format", format.as_str());
            }
        }
        if !self.snapshots.is_empty() {
            let list = self.snapshots.iter().map(snapshots::json).collect::<Vec<Value>>();
            object.set("snapshots", list);
        }
        if let Some(specific) = &self.specific {
            object.set(
                "format-specific",
                Object::new()
                    .with("type", self.format)
                    .with("data", specific.clone()),
            );
        } else if self.file.is_none() {
            object.set("format-specific", file_specific(self.format));
        }
        let children = self.file.iter().map(|file| {
            let info = Object::new()
                .with("virtual-size", file.len)
                .with("filename", file.name.as_str())
                .with("format", file.protocol)
                .with("actual-size", file.allocated.unwrap_or_default())
                .with("format-specific", file_specific(file.protocol))
                .with("dirty-flag", false)
                .with("children", Vec::new());
            Value::from(Object::new().with("name", "file").with("info", info))
        });
        object.set("children", children.collect::<Vec<_>>());
        object
    }
}

fn file_specific(protocol: &str) -> Object {
    Object::new().with("type", protocol).with("data", Object::new())
}

fn disk_size(allocated: Option<u64>) -> String {
    allocated.map_or_else(|| "unavailable".to_owned(), human)
}

/// What is particular to qcow2.
fn qcow2(header: &Header, bytes: &dyn Bytes) -> Result<Object, String> {
    let compression = match header.compression {
        Compression::Deflate => "zlib",
        Compression::Zstd => "zstd",
    };
    let mut object = Object::new()
        .with("compat", header.version.compat())
        .with("compression-type", compression)
        .with("refcount-bits", 1_u64 << header.refcount_order);
    if header.crypt != CryptMethod::None {
        object.set("encrypt", encryption(header, bytes));
    }
    if header.version == Version::V2 {
        return Ok(object);
    }
    object.set(
        "lazy-refcounts",
        header.compatible.contains(Compatible::LAZY_REFCOUNTS),
    );
    object.set("corrupt", header.incompatible.contains(Incompatible::CORRUPT));
    object.set("extended-l2", header.has_extended_l2());
    if header.has_data_file() {
        object.set(
            "data-file-raw",
            header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA),
        );
    }
    if let Some(name) = header.data_file_name() {
        object.set("data-file", String::from_utf8_lossy(name).into_owned());
    }
    if header.autoclear.contains(Autoclear::BITMAPS) {
        let bitmaps = Bitmap::read_all(header, bytes).map_err(|error| error.to_string())?;
        let list: Vec<_> = bitmaps.iter().map(bitmap).collect();
        if !list.is_empty() {
            object.set("bitmaps", list);
        }
    }
    Ok(object)
}

fn bitmap(bitmap: &Bitmap) -> Value {
    let mut flags = Vec::new();
    if bitmap.in_use {
        flags.push(Value::from("in-use"));
    }
    if bitmap.auto {
        flags.push(Value::from("auto"));
    }
    Object::new()
        .with("name", bitmap.name.as_str())
        .with("granularity", bitmap.granularity)
        .with("flags", flags)
        .into()
}

fn encryption(header: &Header, bytes: &dyn Bytes) -> Object {
    if header.crypt == CryptMethod::Aes {
        return Object::new().with("format", "aes");
    }
    let mut object = Object::new()
        .with("format", "luks")
        .with("detached-header", false);
    let area = header
        .crypto_header()
        .and_then(|(offset, _)| bytes.read_some(offset, 592).ok())
        .unwrap_or_default();
    let u32_at = |offset: usize| {
        let raw = area.get(offset..).and_then(|rest| rest.first_chunk());
        raw.map_or(0, |raw| u32::from_be_bytes(*raw))
    };
    let text_at = |offset: usize, len: usize| {
        let raw = area
            .get(offset..)
            .and_then(|rest| rest.get(..len))
            .unwrap_or_default();
        let raw = raw.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(raw).into_owned()
    };
    // LUKS: cipher at 8, mode at 40, hash at 72, payload sector at 104, key bytes at 108, master key iterations at 164, UUID at 168, eight slots from 208.
    let mode = text_at(40, 32);
    let (chaining, vector) = mode.split_once('-').unwrap_or((&mode, ""));
    let (vector, vector_hash) = match vector.split_once(':') {
        Some((vector, hash)) => (vector, Some(hash)),
        None => (vector, None),
    };
    let key_bytes = u32_at(108);
    let key_bits = if chaining == "xts" {
        key_bytes * 4
    } else {
        key_bytes * 8
    };
    object.set("cipher-alg", format!("{}-{key_bits}", text_at(8, 32)));
    object.set("cipher-mode", chaining);
    object.set("ivgen-alg", vector);
    if let Some(hash) = vector_hash {
        object.set("ivgen-hash-alg", hash);
    }
    object.set("hash-alg", text_at(72, 32));
    object.set("payload-offset", u64::from(u32_at(104)) * 512);
    object.set("master-key-iters", u32_at(164));
    object.set("uuid", text_at(168, 40));
    let slots = (0..8_usize).map(|slot| {
        let at = 208 + slot * 48;
        let active = u32_at(at) == 0x00ac_71f3;
        let mut object = Object::new()
            .with("active", active)
            .with("key-offset", u64::from(u32_at(at + 40)) * 512);
        if active {
            object.set("iters", u32_at(at + 4));
            object.set("stripes", u32_at(at + 44));
        }
        Value::from(object)
    });
    object.set("slots", slots.collect::<Vec<_>>());
    object
}
