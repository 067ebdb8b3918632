//! What an overlay records about its backing image, and what a person types for it: one string, many forms.
//!
//! [`Reference::parse`] understands a string, [`Reference::resolve`] says where that is as seen from the overlay, and
//! [`Source`] is the answer, which can be written back ([`Source::to_recorded`]), shown as libvirt shows it
//! ([`Source::to_libvirt_xml`]) and compared ([`Source::same_location`], [`Source::key`]).
//!
//! What holds: everything here is a pure function of its arguments. No file is opened or looked at, so a plain name is
//! always [`Location::File`], though it may turn out to be a block device or a folder. Nothing panics, recurses without
//! bound or loops without end on any input. Whatever a string says that the source does not carry is in
//! [`Reference::lost`].
//!
//! Two [`Reading`]s: libvirt 11.3's exact behaviour, with its gaps; and ours, which closes them.
//!
//! | string | libvirt 11.3 | Catena |
//! | --- | --- | --- |
//! | `"port": 10810` in JSON | ignored, default port | 10810 |
//! | relative file name in JSON or after `file:` | as it is: relative to the process | relative to the overlay |
//! | `file:`, `host_device:`, `host_cdrom:`, `nvme://` | refused | what QEMU means by them |
//! | format drivers and filters in JSON | refused | one format around one object |
//! | single quotes in JSON | refused | as in double quotes |
//! | the same key twice in JSON | the last counts | refused |
//! | `fat:floppy:DIR` | the folder `floppy:DIR` | the folder `DIR`, `floppy` lost |
//! | `rbd:…` or `nbd:…` with `://` further on | a URI | the colon form |
//! | query of a URI | kept for http(s), else only a leading `socket=` | also `uid`, `gid`, `host_key_check`, decoded |

mod colon;
mod credentials;
mod error;
mod json;
mod json_drivers;
mod json_text;
mod lost;
mod names;
#[cfg(test)]
mod properties;
mod protocol;
mod qemu;
mod recorded;
mod source;
#[cfg(test)]
mod tests;
mod uri;
mod xml;

pub use credentials::without_credentials;
pub use error::{ReferenceError, ReferenceErrorKind};
pub use lost::{Lost, LostKind};
pub use protocol::{Protocol, Transport};
pub use qemu::differs_from_qemu;
pub use source::{Host, Location, Network, Nvme, Slice, Source, Ssh};
pub use xml::{XmlElement, escape_xml};

use lost::Losses;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Longest string that is read. Headers hold at most 1023 bytes; a command line may bring more.
pub const MAX_BYTES: usize = 1 << 20;

/// By whose rules a string is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reading {
    /// Ours: what the string means, with everything that can be carried.
    #[default]
    Catena,
    /// libvirt 11.3's, its gaps included.
    Libvirt,
}

/// A recorded string, understood.
#[derive(Clone, Debug)]
pub struct Reference {
    reading: Reading,
    form: Form,
    lost: Vec<Lost>,
}

/// What a string is before the overlay is known.
#[derive(Clone, Debug)]
enum Form {
    /// A file name relative to the overlay.
    Relative(OsString),
    /// Complete, but for a relative file name inside where `relative` says so.
    Complete { source: Source, relative: bool },
}

impl Reference {
    /// Understands a string.
    ///
    /// A NUL ends the string, as it does for libvirt and QEMU.
    ///
    /// # Errors
    ///
    /// Where nothing can be made of the string; the message is libvirt's own where libvirt refuses the string too, but
    /// [without credentials](without_credentials).
    pub fn parse(text: &str, reading: Reading) -> Result<Self, ReferenceError> {
        let text = text.split('\0').next().unwrap_or_default();
        Self::understand(text, reading).map_err(|error| credentials::error_without_credentials(error, text))
    }

    fn understand(text: &str, reading: Reading) -> Result<Self, ReferenceError> {
        check_length(text.len())?;
        let mut losses = Losses::default();
        let form = if names::looks_like_file(text) && !text.starts_with('/') {
            Form::Relative(text.into())
        } else {
            let mut source = match text.strip_prefix("json:") {
                Some(json) => json::parse(json, reading, &mut losses)?,
                None => names::parse(text, reading, &mut losses)?.into(),
            };
            fill_in_ports(&mut source);
            let relative = reading == Reading::Catena && has_relative_file(&source);
            Form::Complete { source, relative }
        };
        Ok(Self {
            reading,
            form,
            lost: losses.into_vec(),
        })
    }

    /// Like [`Reference::parse`] for bytes, which need be UTF-8 only where the string is no plain file name.
    ///
    /// # Errors
    ///
    /// As [`Reference::parse`], and [`ReferenceErrorKind::NotText`].
    pub fn parse_bytes(bytes: &[u8], reading: Reading) -> Result<Self, ReferenceError> {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Self::parse(text, reading);
        }
        check_length(bytes.len())?;
        let slash = bytes.iter().position(|byte| *byte == b'/');
        let colon = bytes.iter().position(|byte| *byte == b':');
        let form = match (colon, slash) {
            (Some(colon), slash) if slash.is_none_or(|slash| colon < slash) => {
                return Err(ReferenceError::new(
                    ReferenceErrorKind::NotText,
                    "the reference is neither a plain file name nor UTF-8",
                ));
            }
            (_, Some(0)) => Form::Complete {
                source: Source::file(OsStr::from_bytes(bytes)),
                relative: false,
            },
            _ => Form::Relative(OsString::from_vec(bytes.to_vec())),
        };
        Ok(Self {
            reading,
            form,
            lost: Vec::new(),
        })
    }

    /// By whose rules the string was read.
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// Whether the answer depends on where the overlay is.
    pub fn is_relative(&self) -> bool {
        match &self.form {
            Form::Relative(_) => true,
            Form::Complete { relative, .. } => *relative,
        }
    }

    /// The plain relative name, where the string is one: what `--keep-relative` writes back.
    pub fn relative_name(&self) -> Option<&OsStr> {
        match &self.form {
            Form::Relative(name) => Some(name),
            Form::Complete { .. } => None,
        }
    }

    /// What the string says that [`Reference::resolve`]'s source does not carry.
    pub fn lost(&self) -> &[Lost] {
        &self.lost
    }

    /// Whether something of a kind was lost.
    pub fn has_lost(&self, kind: LostKind) -> bool {
        self.lost.iter().any(|lost| lost.kind == kind)
    }

    /// The source as far as the string alone tells; relative names stay relative.
    pub fn unresolved(&self) -> Source {
        match &self.form {
            Form::Relative(name) => Source::file(name),
            Form::Complete { source, .. } => source.clone(),
        }
    }

    /// Where the string leads from an overlay.
    ///
    /// A relative name is joined to the overlay's directory as text: nothing is normalised and no link followed. From
    /// a network overlay it leads to the same server.
    pub fn resolve(&self, overlay: &Source) -> Source {
        match &self.form {
            Form::Relative(name) => match &overlay.location {
                Location::Network(above) => beside_on_server(above, name, self.reading).into(),
                _ => Source::file(
                    overlay
                        .path()
                        .map_or_else(|| name.into(), |path| beside(path, name)),
                ),
            },
            Form::Complete { source, relative } => {
                let mut source = source.clone();
                if let (true, Some(overlay)) = (*relative, overlay.path())
                    && let Location::File(path) | Location::Block(path) | Location::Dir(path) =
                        &mut source.location
                {
                    *path = beside(overlay, path.as_os_str());
                }
                source
            }
        }
    }
}

fn check_length(length: usize) -> Result<(), ReferenceError> {
    match length {
        0 => Err(ReferenceError::new(
            ReferenceErrorKind::Empty,
            "the reference is empty",
        )),
        length if length > MAX_BYTES => Err(ReferenceError::new(
            ReferenceErrorKind::TooLong,
            format!("the reference has {length} bytes, more than {MAX_BYTES}"),
        )),
        _ => Ok(()),
    }
}

/// libvirt fills in the port of TCP servers that have none.
fn fill_in_ports(source: &mut Source) {
    if let Location::Network(network) = &mut source.location {
        let default = network.protocol.default_port();
        for host in &mut network.hosts {
            if host.transport == Transport::Tcp && host.port.is_none() {
                host.port = default;
            }
        }
    }
}

fn has_relative_file(source: &Source) -> bool {
    source.path().is_some_and(|path| !path.is_absolute())
}

/// The directory part of a name as text, as libvirt takes it: `.` for a bare name, `/` for one in the root.
fn directory(name: &[u8]) -> &[u8] {
    let Some(mut end) = name.iter().rposition(|byte| *byte == b'/') else {
        return b".";
    };
    while end > 0 && name.get(end) == Some(&b'/') {
        end = end.saturating_sub(1);
    }
    name.get(..=end).unwrap_or_default()
}

/// A name in the directory of another, joined as text.
fn join(above: &[u8], name: &[u8]) -> Vec<u8> {
    match directory(above) {
        b"/" => [b"/", name].concat(),
        directory => [directory, b"/", name].concat(),
    }
}

fn beside(above: &Path, name: &OsStr) -> PathBuf {
    OsString::from_vec(join(above.as_os_str().as_bytes(), name.as_bytes())).into()
}

fn beside_on_server(above: &Network, name: &OsStr, reading: Reading) -> Network {
    let joined = join(
        above.name.as_deref().unwrap_or_default().as_bytes(),
        name.as_bytes(),
    );
    let mut joined = String::from_utf8_lossy(&joined).into_owned();
    let mut network = Network {
        volume: above.volume.clone(),
        hosts: above.hosts.clone(),
        ..Network::new(above.protocol)
    };
    if reading == Reading::Catena {
        // The same server is spoken to in the same way; libvirt forgets how.
        network.config_file.clone_from(&above.config_file);
        network.ssl_verify = above.ssl_verify;
        network.cookies.clone_from(&above.cookies);
        network.readahead = above.readahead;
        network.timeout = above.timeout;
        network.reconnect_delay = above.reconnect_delay;
        network.ssh.clone_from(&above.ssh);
        network.nfs_user.clone_from(&above.nfs_user);
        network.nfs_group.clone_from(&above.nfs_group);
        // A server's names need no `./`, and some servers do not understand it.
        if let Some(plain) = joined.strip_prefix("./")
            && !above.name.as_deref().unwrap_or_default().starts_with("./")
        {
            joined = plain.to_owned();
        }
    }
    network.name = Some(joined);
    network
}
