//! Convert: what a chain shows, written as another image.
//!
//! The source's map says what is read: zeros and what nobody has written are not. A new image is written under another name in
//! its folder and takes its own when it is complete and durable, unless the caller wants it in place; what was interrupted is
//! begun anew by the same command.

use super::copy::{Copy, Moving, SECTOR, Zeros};
use super::create::{self, Existing, Kind, Preallocation};
use super::input::{Concatenated, Input, OpenInput};
use super::observer::Observer;
use super::pieces::{LONG, Piece, Pieces, What, bytes_to_copy, stretches};
use super::view::{Pair, View, read_padded};
use crate::detect::{Start, detect};
use crate::open::Sharing;
use crate::policy::Policy;
use crate::writable::Writable;
use catena_engine::qcow2::Qcow2Disk;
use catena_engine::{Error, ErrorKind, Extent, ExtentKind, Result, Unmap, WritableDisk};
use catena_format::Format;
use catena_storage::sync_directory_of;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What to convert.
#[derive(Clone, Debug)]
pub struct Request {
    /// The disks, one behind the other.
    pub sources: Vec<Input>,
    /// Where to.
    pub target: Target,
    /// What the target's backing image is taken to hold, where it has one.
    pub shared: Shared,
    /// How bytes are moved.
    pub moving: Moving,
    /// Whether clusters are compressed.
    pub compressed: bool,
}

/// Where a conversion goes.
#[derive(Clone)]
pub enum Target {
    /// A new image.
    New {
        /// Its file.
        path: PathBuf,
        /// Its format and options.
        kind: Kind,
        /// Bytes the guest sees, where not as many as the sources have. Not fewer.
        size: Option<u64>,
        /// What is allocated from the start.
        preallocation: Preallocation,
        /// When the file gets its name.
        publish: Publish,
    },
    /// An image that exists.
    Existing {
        /// Its file.
        path: PathBuf,
        /// Its format; probed where `None`.
        format: Option<Format>,
        /// Whether the caller knows that it reads as zeros everywhere.
        is_zero: bool,
    },
    /// A disk that the caller has opened.
    Open {
        /// The disk.
        disk: Arc<dyn WritableDisk>,
        /// How messages name it.
        name: String,
        /// Whether it reads as zeros everywhere, or, over a backing image, as that.
        is_new: bool,
        /// The guest's bytes that its backing image has, where it has one.
        backing_size: Option<u64>,
        /// The disk once more, where it is a qcow2 image.
        qcow2: Option<Arc<Qcow2Disk>>,
    },
}

/// When a new file gets its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Publish {
    /// When it is complete. A file of that name is refused.
    #[default]
    Complete,
    /// At once; a file of that name is emptied. What was interrupted is left as it is.
    InPlace,
}

/// What a target's backing image is taken to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shared {
    /// What it does hold: it is compared with the source, by identity first.
    #[default]
    Compared,
    /// What the source's own backing image holds: all that the source's active image does not answer for is left out.
    /// That is qemu-img's rule, and the caller answers for it.
    SourceBacking,
}

/// A conversion, decided.
pub struct Plan {
    sources: Vec<OpenInput>,
    names: Vec<String>,
    source: View,
    target: Target,
    create: Option<create::Plan>,
    shared: Shared,
    moving: Moving,
    compressed: bool,
    to_copy: u64,
    policy: Policy,
}

/// Decides.
pub fn plan(request: &Request, policy: &Policy) -> Result<Plan> {
    let sources = request
        .sources
        .iter()
        .map(|input| input.open(policy).map_err(|error| error.with_path(input.name())))
        .collect::<Result<Vec<_>>>()?;
    let source = match sources.as_slice() {
        [] => return Err(Error::new(ErrorKind::Conflict, "there is nothing to convert")),
        [one] => one.view.clone(),
        several => View::of_disk(Arc::new(Concatenated::new(
            several.iter().map(|input| Arc::clone(input.view.disk())),
        ))),
    };
    let size = source
        .size()
        .checked_next_multiple_of(SECTOR)
        .unwrap_or(source.size());
    let mut backed = false;
    let create = match &request.target {
        Target::New {
            path,
            kind,
            size: wanted,
            preallocation,
            publish,
        } => {
            backed = matches!(kind, Kind::Qcow2(options) if options.backing.is_some());
            if wanted.is_some_and(|wanted| wanted < size) {
                return Err(too_small());
            }
            if matches!(kind, Kind::Raw) && request.compressed {
                return Err(no_compression());
            }
            let existing = match publish {
                Publish::Complete => Existing::Refuse,
                Publish::InPlace => Existing::Overwrite,
            };
            Some(create::plan(
                &create::Request {
                    path: path.clone(),
                    existing,
                    size: Some(wanted.unwrap_or(size)),
                    kind: kind.clone(),
                    preallocation: *preallocation,
                },
                policy,
            )?)
        }
        Target::Open {
            disk, backing_size, ..
        } => {
            backed = backing_size.is_some();
            if disk.size() < size {
                return Err(too_small());
            }
            None
        }
        Target::Existing { .. } => None,
    };
    if backed && sources.len() > 1 {
        return Err(Error::new(
            ErrorKind::Conflict,
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ));
    }
    let active_only = backed && request.shared == Shared::SourceBacking;
    let to_copy = bytes_to_copy(stretches(&**source.disk(), 0, source.size(), move |extent| {
        judge(extent, active_only)
    }))?;
    Ok(Plan {
        names: request.sources.iter().map(Input::name).collect(),
        sources,
        source,
        target: request.target.clone(),
        create,
        shared: request.shared,
        moving: request.moving.clone(),
        compressed: request.compressed,
        to_copy,
        policy: policy.clone(),
    })
}

fn too_small() -> Error {
    Error::new(ErrorKind::Conflict, "output file is smaller than input file")
}

fn no_compression() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "Compression not supported for this file format",
    )
}

/// What is to be done about a source's extent.
fn judge(extent: &Extent, active_only: bool) -> What {
    if active_only && (extent.layer > 0 || extent.kind == ExtentKind::Unallocated) {
        return What::Skip;
    }
    match extent.kind {
        ExtentKind::Zero { .. } | ExtentKind::Unallocated => What::Zero,
        _ => What::Copy,
    }
}

/// A target that is open.
struct OpenTarget {
    disk: Arc<dyn WritableDisk>,
    qcow2: Option<Arc<Qcow2Disk>>,
    writable: Option<Writable>,
    /// Whether it reads as zeros, or as its backing image, where nothing has been written.
    is_new: bool,
    /// What its backing image shows, where it has one and that is known.
    backing: Option<View>,
    backing_size: Option<u64>,
}

impl Plan {
    /// Bytes that are to be read.
    pub fn to_copy(&self) -> u64 {
        self.to_copy
    }

    /// Bytes the new disk has.
    pub fn size(&self) -> u64 {
        self.create
            .as_ref()
            .map_or(self.source.size(), create::Plan::size)
    }

    /// Converts.
    pub fn execute(&self, observer: &dyn Observer) -> Result<()> {
        observer.check()?;
        match &self.target {
            Target::New { path, publish, .. } => {
                let create = self.create.as_ref().ok_or_else(too_small)?;
                match publish {
                    Publish::InPlace => {
                        create.execute()?;
                        self.fill(path, observer)
                    }
                    Publish::Complete => {
                        let part = part_of(path);
                        create.execute_unsynced_at(&part, Existing::Overwrite)?;
                        let filled = self
                            .fill(&part, observer)
                            .and_then(|()| create::refuse_existing(path, Existing::Refuse))
                            .and_then(|()| publish_as(&part, path));
                        filled.map_err(|error| {
                            // What is left of it is of no use; the error is what matters.
                            let _ = std::fs::remove_file(&part);
                            match error.kind() {
                                ErrorKind::NoSpace => error.with_hint(
                                    "nothing is left of the new image: make room, and run the same command again",
                                ),
                                _ => error,
                            }
                        })
                    }
                }
            }
            Target::Existing {
                path,
                format,
                is_zero,
            } => {
                let target = open_target(path, *format, *is_zero, &self.policy)?;
                if target.disk.size() < self.source.size() {
                    return Err(too_small().with_path(path));
                }
                self.copy_to(target, observer)
            }
            Target::Open {
                disk,
                is_new,
                backing_size,
                qcow2,
                ..
            } => self.copy_to(
                OpenTarget {
                    disk: Arc::clone(disk),
                    qcow2: qcow2.clone(),
                    writable: None,
                    is_new: *is_new,
                    backing: None,
                    backing_size: *backing_size,
                },
                observer,
            ),
        }
    }

    /// Fills the new image at that name.
    fn fill(&self, path: &Path, observer: &dyn Observer) -> Result<()> {
        let format = match &self.target {
            Target::New { kind: Kind::Raw, .. } => Format::Raw,
            _ => Format::Qcow2,
        };
        self.copy_to(open_target(path, Some(format), true, &self.policy)?, observer)
    }

    fn copy_to(&self, target: OpenTarget, observer: &dyn Observer) -> Result<()> {
        let source = &**self.source.disk();
        let end = source.size();
        let backed = target.backing_size.is_some();
        let everything = self.moving.sparse == 0;
        let unmap = if everything { Unmap::Keep } else { Unmap::Allow };
        let zeros = if target.is_new && !backed {
            Zeros::Skip
        } else {
            Zeros::Write(unmap)
        };
        let cluster = target
            .qcow2
            .as_ref()
            .map_or(1, |disk| disk.header().cluster_bits.size());
        if self.compressed && target.qcow2.is_none() {
            return Err(no_compression());
        }
        let unit = if self.compressed {
            cluster
        } else {
            cluster.max(prev_power_of_two(self.moving.sparse)).max(SECTOR)
        };
        let copy = Copy {
            source,
            target: &*target.disk,
            moving: &self.moving,
            zeros,
            unit,
            compressed: target.qcow2.as_deref().filter(|_| self.compressed),
            observer,
            total: self.to_copy,
        };
        let compared = target
            .backing
            .as_ref()
            .filter(|_| backed && self.shared == Shared::Compared);
        if let Some(backing) = compared {
            copy_differences(
                &copy,
                Pair {
                    a: &self.source,
                    b: backing,
                },
                end,
            )?;
        } else {
            let active_only = backed && self.shared == Shared::SourceBacking;
            // Behind the backing image's end the target reads as zeros by itself.
            let backing_end = target.backing_size.unwrap_or(0).min(end);
            let over_backing = stretches(source, 0, backing_end, move |extent| {
                match judge(extent, active_only) {
                    What::Zero if everything => What::Copy,
                    other => other,
                }
            });
            let behind = stretches(source, backing_end, end, move |extent| {
                match judge(extent, active_only) {
                    What::Zero if everything => What::Copy,
                    What::Zero if backed => What::Skip,
                    other => other,
                }
            });
            let align = if self.compressed { cluster } else { 1 };
            let pieces = Pieces::new(over_backing.chain(behind), end, align);
            match copy.offload() {
                // The longer the run, the less it costs the kernel.
                Some(_) => copy.run(pieces.of_at_most(LONG))?,
                None => copy.run(pieces)?,
            }
        }
        target.disk.flush()?;
        if let Some(writable) = target.writable {
            // Also what made it, if nothing has been written to it since.
            writable.finish()?.flush()?;
        }
        Ok(())
    }
}

/// Copies what differs from what the target shows by itself.
pub(super) fn copy_differences(copy: &Copy<'_>, pair: Pair<'_>, end: u64) -> Result<()> {
    // Both sides stay in a processor's cache.
    const PIECE: u64 = 512 << 10;
    // Where zeros are bytes like others, they are compared like others.
    let compares_zeros = matches!(copy.zeros, Zeros::WriteBehind(..));
    let stretches = pair.stretches(end, |_| false).map(move |stretch| {
        let stretch = stretch?;
        Ok(match stretch.what {
            What::Zero if compares_zeros => Piece {
                what: What::Copy,
                ..stretch
            },
            _ => stretch,
        })
    });
    copy.run_differences(
        Pieces::new(stretches, end, copy.unit).of_at_most(PIECE),
        |piece, other| read_padded(&**pair.b.disk(), piece, other),
    )
}

/// Opens an image to be written.
fn open_target(path: &Path, format: Option<Format>, is_new: bool, policy: &Policy) -> Result<OpenTarget> {
    let chain = detect(&Start::at(path, format), policy);
    let writable = chain.open_writable(0, Sharing::Locked)?;
    let below: Vec<_> = chain.layers.iter().skip(1).collect();
    let backing = match below.as_slice() {
        [] => None,
        below => Some(View::open(below, Sharing::Locked)?),
    };
    Ok(OpenTarget {
        disk: Arc::clone(writable.disk()),
        qcow2: writable.qcow2().cloned(),
        writable: Some(writable),
        is_new,
        backing_size: backing.as_ref().map(View::size),
        backing,
    })
}

/// How the name of a file ends that is not complete yet.
pub(super) const UNFINISHED: &str = ".catena-part";

/// The name of a file that is not complete yet.
pub(super) fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

/// Gives a complete file its name.
fn publish_as(part: &Path, path: &Path) -> Result<()> {
    std::fs::rename(part, path)
        .map_err(|error| catena_storage::Error::from_io(error, "rename").with_path(part))?;
    Ok(sync_directory_of(path)?)
}

fn prev_power_of_two(value: u64) -> u64 {
    value.checked_ilog2().map_or(0, |bits| 1 << bits)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = match &self.target {
            Target::New { path, .. } | Target::Existing { path, .. } => path.display().to_string(),
            Target::Open { name, .. } => name.clone(),
        };
        let format = match (&self.create, &self.target) {
            (Some(_), Target::New { kind: Kind::Raw, .. }) => "a new raw image",
            (Some(_), _) => "a new qcow2 image",
            (None, _) => "an image that exists",
        };
        let compressed = if self.compressed { ", compressed" } else { "" };
        let names: Vec<_> = self.names.iter().map(|name| format!("'{name}'")).collect();
        write!(
            f,
            "{target}: {format} of {} bytes with the content of {}; {} bytes to copy{compressed}",
            self.size(),
            names.join(", "),
            self.to_copy
        )
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("sources", &self.sources)
            .field("target", &self.target)
            .field("to_copy", &self.to_copy)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (how, name) = match self {
            Self::New { path, .. } => ("New", path.display().to_string()),
            Self::Existing { path, .. } => ("Existing", path.display().to_string()),
            Self::Open { name, .. } => ("Open", name.clone()),
        };
        write!(f, "{how}({name})")
    }
}
