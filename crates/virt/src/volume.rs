//! An image as libvirt's storage pools show it: the `<volume>` that `virsh vol-dumpxml` prints.
//!
//! The rules are those of libvirt 11.3's folder pools: the image's format is the one that libvirt probes, and what it
//! records of its backing image is shown for that one layer, with what the file system says of it. What the policy does not
//! let be opened is shown as it is recorded. Nothing here writes.

use catena::chain::{Chain, End, Layer, LayerFile};
use catena::reference::{Source, XmlElement, without_credentials};
use catena::{Error, ErrorKind, Policy, Result, Start, detect};
use catena_format::describe::{Description, Encryption};
use catena_format::qcow2::{Compatible, Header, Incompatible, Version};
use catena_format::{Format, recognise};
use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// How many bytes of an image libvirt reads.
const WINDOW: usize = 33_280;
/// The longest security label that is read.
const LABEL: usize = 4096;

/// What to print.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The image: a file or block device.
    pub path: &'a Path,
    /// Its format; the one that libvirt probes where `None`.
    pub format: Option<Format>,
    /// The volume's name; the file's where `None`.
    pub name: Option<&'a str>,
}

/// An image as a volume.
#[derive(Debug)]
pub struct Volume {
    /// The `<volume>`, with a newline at the end.
    pub xml: String,
    /// The chain that the image begins.
    pub chain: Chain,
}

/// Looks at an image and writes it as a volume.
///
/// # Errors
/// Where the image cannot be read in its format, or XML cannot hold its name.
pub fn volume(request: &Request<'_>, policy: &Policy) -> Result<Volume> {
    let path = std::path::absolute(request.path).map_err(|error| failed(request.path, error))?;
    let mut chain = detect(&Start::at(&path, request.format), policy);
    if request.format.is_none()
        && let Some(format) = libvirts(&chain)?
    {
        chain = detect(&Start::at(&path, Some(format)), policy);
    }
    let Some(active) = chain.active() else {
        chain.check_complete()?;
        return Err(Error::new(ErrorKind::Unsupported, "it is no image").with_path(path));
    };
    let name = match request.name {
        Some(name) => name.to_owned(),
        None => text(Path::new(path.file_name().unwrap_or_default()))?,
    };
    let xml = element(active, &path, &name, backing(&chain, policy)?)?.finish();
    Ok(Volume { xml, chain })
}

/// The format that libvirt takes the active image for, where it is another than the one that was probed.
fn libvirts(chain: &Chain) -> Result<Option<Format>> {
    // An image that cannot be read in the format that QEMU sees has no better chance in another.
    let Some((active, file)) = chain
        .active()
        .and_then(|active| Some((active, active.file.as_ref()?)))
    else {
        return Ok(None);
    };
    let mut start = vec![0; WINDOW];
    let open = opened(file)?;
    let mut len = 0;
    while let Some(rest) = start.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match open.read_at(rest, len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(active.path().unwrap_or(Path::new("")), error)),
        }
    }
    start.truncate(len);
    let format = recognise::probe_as_libvirt(&start)?;
    // A LUKS container is raw with encryption to it.
    let same = format == active.format || (format == Format::Raw && active.format == Format::Luks);
    Ok((!same).then_some(format))
}

/// The image below, as far as it is known.
struct Backing {
    path: String,
    format: Option<Format>,
    file: Option<File>,
}

fn backing(chain: &Chain, policy: &Policy) -> Result<Option<Backing>> {
    let recorded = |source: Option<&Source>, text: &str| -> Result<String> {
        match source.and_then(Source::path) {
            Some(path) => self::text(path),
            None => Ok(without_credentials(text).into_owned()),
        }
    };
    if let Some(layer) = chain.layers.get(1) {
        let link = layer.link.as_ref().map_or("", |link| link.text.as_str());
        return Ok(Some(Backing {
            path: recorded(Some(&layer.source), link)?,
            format: Some(layer.format),
            file: layer.file.as_ref().map(opened).transpose()?,
        }));
    }
    let Some(reference) = chain
        .active()
        .and_then(|active| active.description.backing.as_ref())
    else {
        return Ok(None);
    };
    let word = reference.format.as_deref().filter(|word| !word.is_empty());
    let format = word.and_then(Format::from_recorded);
    let End::Broken(broken) = &chain.end else {
        return Ok(Some(Backing {
            path: recorded(None, &reference.name)?,
            format,
            file: None,
        }));
    };
    let probed = broken.probed.as_ref().map(|(format, _)| *format);
    let source = broken.source.as_ref();
    let file = source
        .and_then(Source::path)
        .filter(|_| broken.error.kind() != ErrorKind::Refused)
        .and_then(|path| policy.open(path).ok())
        .and_then(|file| LayerFile::new(file).ok());
    Ok(Some(Backing {
        path: recorded(source, &reference.name)?,
        format: format.or(probed),
        file: file.as_ref().map(opened).transpose()?,
    }))
}

fn element(active: &Layer, path: &Path, name: &str, backing: Option<Backing>) -> Result<XmlElement> {
    let file = match &active.file {
        Some(file) => opened(file)?,
        None => return Err(Error::new(ErrorKind::Unsupported, "it is not on this host").with_path(path)),
    };
    let metadata = file.metadata().map_err(|error| failed(path, error))?;
    let is_block = metadata.file_type().is_block_device();
    let len = active.file.as_ref().map_or(0, |file| file.identity.len);
    let allocated = if is_block {
        len
    } else {
        metadata.blocks().saturating_mul(512)
    };
    let path = text(path)?;

    let mut volume = XmlElement::new("volume");
    volume.attribute("type", if is_block { "block" } else { "file" });
    said(&mut volume, "name", name)?;
    said(&mut volume, "key", &path)?;
    bytes(&mut volume, "capacity", active.virtual_size().unwrap_or(len));
    bytes(&mut volume, "allocation", allocated);
    if len > 0 {
        bytes(&mut volume, "physical", len);
    }
    let mut target = XmlElement::new("target");
    said(&mut target, "path", &path)?;
    target.leaf("format", "type", Some(active.format.libvirt()));
    owned(&mut target, &file, &metadata);
    if let Some(format) = encryption(&active.description) {
        target.leaf("encryption", "format", Some(format));
    }
    if let Some(header) = &active.header {
        features(&mut target, header);
    }
    volume.child(&target);
    if let Some(backing) = backing {
        let mut store = XmlElement::new("backingStore");
        said(&mut store, "path", &backing.path)?;
        store.leaf("format", "type", backing.format.map(Format::libvirt));
        if let Some(file) = backing.file
            && let Ok(metadata) = file.metadata()
        {
            owned(&mut store, &file, &metadata);
        }
        volume.child(&store);
    }
    Ok(volume)
}

/// Whose a file is, and since when.
fn owned(into: &mut XmlElement, file: &File, metadata: &Metadata) {
    let mut permissions = XmlElement::new("permissions");
    let mut add = |name, value: String| permissions.child_text(&XmlElement::new(name), &value);
    add("mode", format!("{:04o}", metadata.mode() & 0o777));
    add("owner", metadata.uid().to_string());
    add("group", metadata.gid().to_string());
    if let Some(label) = label(file) {
        add("label", label);
    }
    into.child(&permissions);
    let mut timestamps = XmlElement::new("timestamps");
    let mut add = |name, seconds: i64, nanoseconds: i64| {
        // Unsigned, as libvirt prints what was before 1970.
        let mut value = seconds.cast_unsigned().to_string();
        if nanoseconds != 0 {
            value.push_str(&format!(".{nanoseconds:09}"));
        }
        timestamps.child_text(&XmlElement::new(name), &value);
    };
    add("atime", metadata.atime(), metadata.atime_nsec());
    add("mtime", metadata.mtime(), metadata.mtime_nsec());
    add("ctime", metadata.ctime(), metadata.ctime_nsec());
    // libvirt does not ask Linux when a file was made.
    add("btime", 0, 0);
    into.child(&timestamps);
}

/// The file's SELinux label, where it has one.
fn label(file: &File) -> Option<String> {
    let mut value = vec![0; LABEL];
    let len = rustix::fs::fgetxattr(file, "security.selinux", value.as_mut_slice()).ok()?;
    value.truncate(len);
    let label = String::from_utf8(value).ok()?;
    let label = label.trim_end_matches('\0');
    (!label.is_empty()).then(|| label.to_owned())
}

fn encryption(description: &Description) -> Option<&'static str> {
    Some(match description.encryption.as_ref()? {
        Encryption::Aes => "qcow",
        Encryption::Luks(_) | Encryption::LuksUnreadable(_) => "luks",
    })
}

fn features(target: &mut XmlElement, header: &Header) {
    let with_features = header.version == Version::V3;
    if with_features {
        target.child_text(&XmlElement::new("compat"), header.version.compat());
    }
    let mut cluster = XmlElement::new("clusterSize");
    cluster.attribute("unit", "B");
    target.child_text(&cluster, &header.cluster_bits.size().to_string());
    if with_features {
        let mut features = XmlElement::new("features");
        for (name, there) in [
            (
                "lazy_refcounts",
                header.compatible.contains(Compatible::LAZY_REFCOUNTS),
            ),
            (
                "extended_l2",
                header.incompatible.contains(Incompatible::EXTENDED_L2),
            ),
            ("data_file", header.has_data_file()),
        ] {
            if there {
                features.child(&XmlElement::new(name));
            }
        }
        target.child(&features);
    }
}

fn bytes(into: &mut XmlElement, name: &'static str, value: u64) {
    let mut element = XmlElement::new(name);
    element.attribute("unit", "bytes");
    into.child_text(&element, &value.to_string());
}

/// Adds an element with a text, which XML must be able to hold.
fn said(into: &mut XmlElement, name: &'static str, value: &str) -> Result<()> {
    let mut escaped = String::new();
    if !catena::reference::escape_xml(value, &mut escaped) {
        return Err(unsayable(value));
    }
    into.child_text(&XmlElement::new(name), value);
    Ok(())
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| unsayable(&path.to_string_lossy()))
}

fn unsayable(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the name '{name}' has bytes that XML cannot hold"),
    )
}

fn opened(file: &LayerFile) -> Result<File> {
    let opened = file.storage.opened()?;
    let owned = opened.as_fd().try_clone_to_owned();
    Ok(File::from(owned.map_err(|error| failed(Path::new(""), error))?))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "cannot look at the image")
        .with_path(path)
        .with_source(error)
}
