//! Making the files of a chain, from the base up, with qemu-img and qemu-io.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FallocateFlags;
use serde_json::{Value, json};

use super::spec::{
    BackingName, ChainSpec, Compression, DataFile, Encryption, Fill, Format, ImageSpec, LayerSpec, Op,
    Preallocation, Qcow2Spec,
};
use crate::qemu::{self, Target};

/// The password of every encrypted image.
pub const PASSWORD: &str = "catena";
/// The secret's name where QEMU is told of it.
const SECRET_ID: &str = "sec0";

/// A chain that was made. Its files are in the folder it was built in; nothing removes them but the folder's end.
#[derive(Clone, Debug)]
pub struct Built {
    /// The file of the active layer.
    pub top: PathBuf,
    /// All layers, the active one first, the base last.
    pub layers: Vec<BuiltLayer>,
}

/// One layer of a chain that was made.
#[derive(Clone, Debug)]
pub struct BuiltLayer {
    /// Its file, from the root.
    pub path: PathBuf,
    /// The name of its format, as QEMU has it.
    pub format: &'static str,
    /// Its virtual size in bytes, as it was asked for.
    pub size: u64,
    /// Its external data file, from the root.
    pub data_file: Option<PathBuf>,
    /// How it is encrypted; the password is [`PASSWORD`].
    pub encryption: Option<Encryption>,
    /// What it records as the name of its backing image.
    pub backing_name: Option<String>,
    /// Whether it records that image's format.
    pub format_recorded: bool,
    /// Whether its last writer died.
    pub left_open: bool,
}

impl Built {
    /// How QEMU's tools are told of this chain: by the path of the active layer where the recorded names suffice, by a
    /// description of every layer where one needs a password.
    pub fn target(&self) -> Target {
        self.target_of(0)
    }

    /// The same for the chain that begins at a lower layer.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn target_of(&self, layer: usize) -> Target {
        let layers = &self.layers[layer..];
        if layers.iter().all(|layer| layer.encryption.is_none()) {
            return Target::file(&layers[0].path, layers[0].format);
        }
        let node = layers
            .iter()
            .rev()
            .fold(Value::Null, |below, layer| layer.node(below));
        let secret = format!("secret,id={SECRET_ID},data={PASSWORD}");
        Target {
            name: format!("json:{node}"),
            format: None,
            objects: vec![secret],
        }
    }

    /// Whether any layer needs a password.
    pub fn is_encrypted(&self) -> bool {
        self.layers.iter().any(|layer| layer.encryption.is_some())
    }
}

impl BuiltLayer {
    /// The image by itself, for verbs that do not open what is below it.
    fn alone(&self) -> Target {
        Built {
            top: PathBuf::new(),
            layers: vec![self.clone()],
        }
        .target()
    }

    fn node(&self, below: Value) -> Value {
        let mut node = json!({
            "driver": self.format,
            "file": { "driver": "file", "filename": self.path },
        });
        if let Some(encryption) = self.encryption {
            node["encrypt"] = json!({ "format": encryption_name(encryption), "key-secret": SECRET_ID });
        }
        if !below.is_null() {
            node["backing"] = below;
        }
        node
    }
}

impl ChainSpec {
    /// Makes the chain in `dir`.
    ///
    /// # Errors
    /// If a tool fails: the value was not [normalised](ChainSpec::normalised), or there is no space.
    pub fn build(&self, dir: &Path) -> Result<Built> {
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        let fills = Fills::new()?;
        let mut below: Vec<BuiltLayer> = Vec::new();
        for (index, spec) in self.layers.iter().enumerate().rev() {
            let layer = build_layer(&dir, index, spec, &below, &fills)
                .with_context(|| format!("layer {index} of {self:?}"))?;
            below.insert(0, layer);
        }
        let top = below
            .first()
            .context("a chain has at least one layer")?
            .path
            .clone();
        Ok(Built { top, layers: below })
    }
}

impl ImageSpec {
    /// Makes the image alone in `dir`.
    ///
    /// # Errors
    /// As for [`ChainSpec::build`].
    pub fn build(&self, dir: &Path) -> Result<Built> {
        self.clone().alone().build(dir)
    }
}

fn build_layer(
    dir: &Path,
    index: usize,
    spec: &LayerSpec,
    below: &[BuiltLayer],
    fills: &Fills,
) -> Result<BuiltLayer> {
    let image = &spec.image;
    let folder = if spec.own_folder {
        dir.join(format!("own{index}"))
    } else {
        dir.to_owned()
    };
    std::fs::create_dir_all(&folder)?;
    let format = image.format_name();
    let backing = below.first();
    let mut layer = BuiltLayer {
        path: folder.join(format!("layer{index}.{format}")),
        format,
        size: image.size,
        data_file: None,
        encryption: image.encryption(),
        backing_name: backing.map(|backing| backing_name(spec, &folder, dir, backing)),
        format_recorded: spec.format_recorded || backing.is_none(),
        left_open: image.left_open,
    };
    match &image.format {
        Format::Raw => {
            ensure!(backing.is_none(), "a raw image has no backing image");
            write_raw(&layer.path, image, fills)?;
        }
        Format::Qcow2(qcow2) => {
            if qcow2.data_file.is_some() {
                layer.data_file = Some(folder.join(format!("layer{index}.data")));
            }
            create(&layer, qcow2, backing)?;
            let mut layers = vec![layer];
            layers.extend_from_slice(below);
            let chain = Built {
                top: PathBuf::new(),
                layers,
            };
            apply(image, &chain.target(), &chain.layers[0].alone(), fills)?;
            layer = chain.layers.into_iter().next().context("the layer itself")?;
            if !layer.format_recorded {
                forget_backing_format(&layer.path)?;
            }
        }
    }
    Ok(layer)
}

fn backing_name(spec: &LayerSpec, folder: &Path, dir: &Path, backing: &BuiltLayer) -> String {
    let from_dir = backing
        .path
        .strip_prefix(dir)
        .unwrap_or(&backing.path)
        .display()
        .to_string();
    let relative = match backing.path.strip_prefix(folder) {
        Ok(inside) => inside.display().to_string(),
        Err(_) => format!("../{from_dir}"),
    };
    let absolute = backing.path.display();
    match spec.backing {
        BackingName::Relative => relative,
        BackingName::Dotted => format!("./{relative}"),
        BackingName::Absolute => absolute.to_string(),
        BackingName::File => format!("file:{absolute}"),
        BackingName::Json => {
            let mut node = json!({ "file": { "driver": "file", "filename": backing.path } });
            if spec.format_recorded {
                node["driver"] = backing.format.into();
            }
            format!("json:{node}")
        }
    }
}

fn create(layer: &BuiltLayer, qcow2: &Qcow2Spec, backing: Option<&BuiltLayer>) -> Result<()> {
    let mut options = vec![
        format!("compat={}", if qcow2.v3 { "1.1" } else { "0.10" }),
        format!("cluster_size={}", 1u64 << qcow2.cluster_bits),
        format!("refcount_bits={}", 1u32 << qcow2.refcount_order),
    ];
    if qcow2.extended_l2 {
        options.push("extended_l2=on".to_owned());
    }
    if qcow2.compression == Compression::Zstd {
        options.push("compression_type=zstd".to_owned());
    }
    if let (Some(kind), Some(path)) = (qcow2.data_file, &layer.data_file) {
        // As recorded, the name is relative to nothing but the working folder of whoever opens the image.
        options.push(format!("data_file={}", path.display()));
        if kind == DataFile::Raw {
            options.push("data_file_raw=on".to_owned());
        }
    }
    if qcow2.lazy_refcounts {
        options.push("lazy_refcounts=on".to_owned());
    }
    match qcow2.preallocation {
        Preallocation::Off => {}
        Preallocation::Metadata => options.push("preallocation=metadata".to_owned()),
        Preallocation::Falloc => options.push("preallocation=falloc".to_owned()),
        Preallocation::Full => options.push("preallocation=full".to_owned()),
    }
    if qcow2.encryption == Some(Encryption::Luks) {
        options.push("encrypt.format=luks".to_owned());
        return create_luks(layer, &options, backing);
    }
    let mut arguments: Vec<String> = ["create", "-q", "-f", "qcow2"].map(str::to_owned).into();
    if qcow2.encryption == Some(Encryption::Aes) {
        options.push(format!("encrypt.format=aes,encrypt.key-secret={SECRET_ID}"));
        arguments.extend(["--object".to_owned(), secret()]);
    }
    if let (Some(backing), Some(name)) = (backing, &layer.backing_name) {
        // Unopened (-u), for it may need a password.
        arguments.extend(["-u", "-F", backing.format, "-b", name].map(str::to_owned));
    }
    arguments.extend(["-o".to_owned(), options.join(",")]);
    arguments.extend([layer.path.display().to_string(), layer.size.to_string()]);
    qemu::img(arguments)?;
    Ok(())
}

/// Makes a LUKS image from an empty one that is kept for the next time: before it makes a key, QEMU measures for some
/// seconds how fast this machine is.
fn create_luks(layer: &BuiltLayer, options: &[String], backing: Option<&BuiltLayer>) -> Result<()> {
    let options = options.join(",");
    let cache = crate::cache_dir()?;
    let kept = cache.join(format!(
        "luks-{}-{}.qcow2",
        qemu::version()?,
        options.replace(['=', ',', '.'], "-")
    ));
    if !kept.exists() {
        let fresh = tempfile::Builder::new()
            .prefix("luks")
            .tempfile_in(&cache)?
            .into_temp_path();
        let path = fresh.to_str().context("the name of the cache is not UTF-8")?;
        let all = format!("{options},encrypt.key-secret={SECRET_ID},encrypt.iter-time=10");
        qemu::img([
            "create",
            "-q",
            "-f",
            "qcow2",
            "--object",
            &secret(),
            "-o",
            &all,
            path,
            "0",
        ])?;
        // Two tests may both have made it; either will do.
        fresh.persist(&kept)?;
    }
    std::fs::copy(&kept, &layer.path)?;
    let alone = Built {
        top: PathBuf::new(),
        layers: vec![layer.clone()],
    }
    .target();
    if layer.size > 0 {
        let mut words = vec!["resize", "-q"];
        words.extend(alone.options());
        let size = layer.size.to_string();
        words.extend([alone.name.as_str(), &size]);
        qemu::img(words)?;
    }
    if let (Some(backing), Some(name)) = (backing, &layer.backing_name) {
        qemu::img_on("rebase", &alone, &["-u", "-F", backing.format, "-b", name])?;
    }
    Ok(())
}

fn secret() -> String {
    format!("secret,id={SECRET_ID},data={PASSWORD}")
}

fn encryption_name(encryption: Encryption) -> &'static str {
    match encryption {
        Encryption::Luks => "luks",
        Encryption::Aes => "aes",
    }
}

/// Takes the image through its life: all writes between two snapshots or bitmaps in one process.
///
/// Compressed writes begin a new process if there was one before. QEMU (10.0) remembers where the last compressed
/// cluster ended and packs the next behind it, also after the cluster around was freed and given to something else.
fn apply(image: &ImageSpec, target: &Target, alone: &Target, fills: &Fills) -> Result<()> {
    let cluster = image.cluster_size();
    let mut batch = Vec::new();
    let mut snapshots = 0;
    let mut bitmaps = 0;
    for op in &image.ops {
        match op {
            Op::Snapshot => {
                qemu::io(target, &std::mem::take(&mut batch))?;
                snapshots += 1;
                // This verb finds out the format by itself, and takes no -f.
                let probed = Target {
                    format: None,
                    ..target.clone()
                };
                qemu::img_on("snapshot", &probed, &["-c", &format!("snapshot{snapshots}")])?;
            }
            Op::Bitmap { disabled } => {
                qemu::io(target, &std::mem::take(&mut batch))?;
                bitmaps += 1;
                let mut words = vec!["bitmap", "--add"];
                words.extend(disabled.then_some("--disable"));
                words.extend(alone.options());
                let name = format!("bitmap{bitmaps}");
                words.extend([alone.name.as_str(), &name]);
                qemu::img(words)?;
            }
            Op::Write { at, len, fill } => batch.push(fills.command("write", *at, *len, *fill)),
            Op::Compress { at, len, fill } => {
                if batch
                    .iter()
                    .any(|command: &String| command.starts_with("write -c"))
                {
                    qemu::io(target, &std::mem::take(&mut batch))?;
                }
                // One cluster a command; only the last of the image may be cut short.
                let mut at = *at;
                let end = at + len;
                while at < end {
                    batch.push(fills.command("write -c", at, cluster.min(end - at), *fill));
                    at += cluster;
                }
            }
            Op::Zero { at, len, unmap } => {
                batch.push(format!("write -z {}{at} {len}", if *unmap { "-u " } else { "" }));
            }
            Op::Discard { at, len } => batch.push(format!("discard {at} {len}")),
        }
    }
    if image.left_open {
        qemu::io_then_die(target, &batch)
    } else {
        qemu::io(target, &batch).map(drop)
    }
}

fn write_raw(path: &Path, image: &ImageSpec, fills: &Fills) -> Result<()> {
    let file = File::create_new(path).with_context(|| path.display().to_string())?;
    file.set_len(image.size)?;
    for op in &image.ops {
        match *op {
            Op::Write { at, len, fill } | Op::Compress { at, len, fill } => {
                file.write_all_at(&fills.bytes(fill, usize::try_from(len)?), at)?;
            }
            Op::Zero { at, len, .. } | Op::Discard { at, len } => {
                rustix::fs::fallocate(
                    &file,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    at,
                    len,
                )?;
            }
            Op::Snapshot | Op::Bitmap { .. } => bail!("a raw image has neither snapshots nor bitmaps"),
        }
    }
    Ok(())
}

/// Takes the header extension with the format of the backing image out of a qcow2 header. qemu-img no longer makes
/// overlays without it, but the world is full of them.
fn forget_backing_format(path: &Path) -> Result<()> {
    const BACKING_FORMAT: u32 = 0xE279_2ACA;
    const HEADER_LENGTH_V2: usize = 72;
    let file = File::options().read(true).write(true).open(path)?;
    // The name of the backing image follows the extensions.
    let mut name_at = [0; 8];
    file.read_exact_at(&mut name_at, 8)?;
    let end = usize::try_from(u64::from_be_bytes(name_at))?;
    let mut header = vec![0; end];
    file.read_exact_at(&mut header, 0)?;
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let start = if word(4) == 2 {
        HEADER_LENGTH_V2
    } else {
        word(100) as usize
    };
    let mut at = start;
    while word(at) != BACKING_FORMAT {
        ensure!(word(at) != 0, "no backing format is recorded");
        at += 8 + (word(at + 4) as usize).next_multiple_of(8);
    }
    let next = at + 8 + (word(at + 4) as usize).next_multiple_of(8);
    let mut rest = header[next..end].to_vec();
    rest.resize(end - at, 0);
    file.write_all_at(&rest, at as u64)?;
    Ok(())
}

/// Files of repeatable bytes that qemu-io can write from. Their length divides no cluster, so that clusters differ.
struct Fills {
    dir: tempfile::TempDir,
    made: std::cell::RefCell<BTreeMap<(u8, u8), PathBuf>>,
}

impl Fills {
    const PERIOD: usize = 65_521;

    fn new() -> Result<Self> {
        Ok(Self {
            dir: crate::scratch()?,
            made: Default::default(),
        })
    }

    fn command(&self, verb: &str, at: u64, len: u64, fill: Fill) -> String {
        let (kind, seed) = match fill {
            Fill::Byte(byte) => return format!("{verb} -P {byte} {at} {len}"),
            Fill::Noise(seed) => (0, seed),
            Fill::Text(seed) => (1, seed),
        };
        let mut made = self.made.borrow_mut();
        let path = made.entry((kind, seed)).or_insert_with(|| {
            let path = self.dir.path().join(format!("{kind}-{seed}"));
            std::fs::write(&path, period(fill)).expect("the temporary folder takes a small file");
            path
        });
        format!("{verb} -s {} {at} {len}", path.display())
    }

    fn bytes(&self, fill: Fill, len: usize) -> Vec<u8> {
        period(fill).into_iter().cycle().take(len).collect()
    }
}

/// One period of a fill (xorshift64).
fn period(fill: Fill) -> Vec<u8> {
    let (seed, mask) = match fill {
        Fill::Byte(byte) => return vec![byte],
        Fill::Noise(seed) => (seed, 0xff),
        Fill::Text(seed) => (seed, 0x0f),
    };
    let mut state = 0x9E37_79B9_7F4A_7C15 ^ u64::from(seed) << 32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..Fills::PERIOD)
        .map(|_| {
            if mask == 0xff {
                next()
            } else {
                b'a' + (next() & mask)
            }
        })
        .collect()
}
