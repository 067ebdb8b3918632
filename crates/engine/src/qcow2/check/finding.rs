//! What a check finds: each fault as a value, with the line that QEMU prints for it.
//!
//! The lines are QEMU 10's, byte for byte, since scripts read them. What QEMU does not look for has its own kinds and a
//! line of ours: [`Finding::beyond_qemu`].

use std::fmt::Write;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The image contradicts itself: data may be damaged, or will be by writing.
    Corruption,
    /// Space is lost, and nothing else.
    Leak,
    /// Something could not be examined.
    Error,
    /// Says what happens; counts for nothing.
    Note,
}

/// What was done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was found, and nobody asked for more.
    Found,
    /// It was mended.
    Repaired,
}

/// A fault, with what its line needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A reference reaches past the end of the file by a cluster or more.
    PastEnd {
        /// Offset of what is referred to.
        offset: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// More references to a cluster than a refcount of this width can count.
    RefcountOverflow {
        /// Offset of the cluster.
        offset: u64,
    },
    /// A refcount differs from the references that there are.
    Refcount {
        /// Number of the cluster.
        cluster: u64,
        /// What the refcount block says.
        refcount: u64,
        /// What the tables say.
        references: u64,
    },
    /// The refcount block of a cluster cannot be read.
    RefcountUnreadable {
        /// Number of the cluster.
        cluster: u64,
    },
    /// A refcount block is not where one can be, so that the image counts as corrupt.
    RefcountBlockUnusable {
        /// Its offset.
        offset: u64,
        /// Index in the refcount table.
        index: u64,
    },
    /// Bits of a refcount table entry are set that must not be.
    RefcountTableReserved {
        /// Index in the refcount table.
        index: u64,
    },
    /// A refcount block does not begin with a cluster.
    RefcountBlockUnaligned {
        /// Index in the refcount table.
        index: u64,
    },
    /// A refcount block lies past the end of the file.
    RefcountBlockOutside {
        /// Index in the refcount table.
        index: u64,
    },
    /// A refcount block is used for something else, too.
    RefcountBlockShared {
        /// Index in the refcount table.
        index: u64,
        /// How often it is referred to.
        references: u64,
    },
    /// Bits of an L1 entry are set that must not be.
    L1Reserved {
        /// The entry.
        entry: u64,
    },
    /// An L2 table does not begin with a cluster.
    L2Unaligned {
        /// Offset of the table.
        offset: u64,
    },
    /// Bits of an L2 entry are set that must not be.
    L2Reserved {
        /// The entry.
        entry: u64,
    },
    /// A table cannot be read.
    TableUnreadable {
        /// Whether it is an L1 table.
        l1: bool,
    },
    /// A compressed cluster is said to have a refcount of one.
    CompressedCopied {
        /// The entry's offset bits.
        offset: u64,
    },
    /// A compressed cluster in an image whose data is in a data file.
    CompressedWithDataFile {
        /// Index in the L2 table.
        index: u64,
        /// The entry.
        entry: u64,
    },
    /// A compressed cluster with a subcluster bitmap.
    CompressedWithBitmap {
        /// Index in the L2 table.
        index: u64,
        /// The entry.
        entry: u64,
    },
    /// A subcluster is said to be both data and zeros.
    SubclusterBitmap {
        /// Offset of the cluster.
        offset: u64,
    },
    /// Subclusters are said to be data where there is no cluster.
    UnallocatedBitmap,
    /// A data cluster does not begin with one of the file.
    DataUnaligned {
        /// Its offset.
        offset: u64,
    },
    /// A cluster kept for later does not begin with one of the file.
    PreallocatedUnaligned {
        /// Its offset.
        offset: u64,
    },
    /// There are internal snapshots, but the data is in a data file.
    SnapshotsWithDataFile {
        /// How many.
        count: u32,
    },
    /// A snapshot's L1 table does not begin with a cluster.
    SnapshotL1Unaligned {
        /// Id of the snapshot, lossily decoded.
        id: String,
        /// Its name, lossily decoded.
        name: String,
        /// Offset of the L1 table.
        offset: u64,
    },
    /// A snapshot's L1 table is longer than any may be.
    SnapshotL1TooLarge {
        /// Id of the snapshot, lossily decoded.
        id: String,
        /// Its name, lossily decoded.
        name: String,
        /// Entries of the L1 table.
        entries: u32,
    },
    /// The snapshot table cannot be read.
    SnapshotTable {
        /// Why, in QEMU's words.
        why: String,
        /// What QEMU says can be done, if anything.
        hint: Option<String>,
    },
    /// A snapshot lacks the fields that version 3 asks for.
    SnapshotIncomplete {
        /// Index in the snapshot table.
        index: u64,
    },
    /// The bitmap directory, a bitmap's table or an entry of one is not what it must be. QEMU counts it silently.
    Bitmaps {
        /// What is wrong.
        why: String,
    },
    /// An L2 table is said to have a refcount of one and has another, or the reverse.
    CopiedL2 {
        /// Index in the L1 table.
        index: u64,
        /// The entry.
        entry: u64,
        /// The refcount on disk.
        refcount: u64,
    },
    /// A cluster is said to have a refcount of one and has another, or the reverse.
    CopiedData {
        /// The L2 entry.
        entry: u64,
        /// The refcount on disk.
        refcount: u64,
    },
    /// All refcounts are written anew.
    Rebuilding,
    /// A cluster that held refcounts before they were written anew.
    RefcountsRetired {
        /// Number of the cluster.
        cluster: u64,
        /// How often it was referred to.
        refcount: u64,
        /// How often it still is.
        references: u64,
    },
    /// Refcounts are so wrong that mending leaks does not help.
    NeedsRebuild,
    /// Two structures lie in the same cluster though its refcount allows for both. QEMU does not look for it.
    Overlap {
        /// Offset of the cluster.
        offset: u64,
        /// What should have it for itself.
        what: &'static str,
    },
    /// The backing file name lies outside the first cluster, where a guest can write it. QEMU does not look for it.
    BackingNameOutside {
        /// Offset of the name.
        offset: u64,
    },
    /// An L1 or L2 entry of a version 2 image uses what only version 3 has. QEMU does not look for it.
    ZeroInVersion2 {
        /// The entry.
        entry: u64,
    },
}

/// A fault and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Finding {
    /// The fault.
    pub kind: FindingKind,
    /// What was done about it.
    pub outcome: Outcome,
}

impl Finding {
    /// A fault nobody has done anything about.
    pub fn new(kind: FindingKind) -> Self {
        Self {
            kind,
            outcome: Outcome::Found,
        }
    }

    /// A fault that was mended.
    pub fn repaired(kind: FindingKind) -> Self {
        Self {
            kind,
            outcome: Outcome::Repaired,
        }
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        use FindingKind as Kind;
        match &self.kind {
            Kind::Refcount {
                refcount, references, ..
            } if refcount > references => Severity::Leak,
            Kind::RefcountUnreadable { .. } | Kind::TableUnreadable { .. } | Kind::SnapshotTable { .. } => {
                Severity::Error
            }
            Kind::RefcountBlockUnusable { .. }
            | Kind::Rebuilding
            | Kind::RefcountsRetired { .. }
            | Kind::NeedsRebuild => Severity::Note,
            _ => Severity::Corruption,
        }
    }

    /// Whether QEMU's check would not have found it.
    pub fn beyond_qemu(&self) -> bool {
        matches!(
            self.kind,
            FindingKind::Overlap { .. }
                | FindingKind::BackingNameOutside { .. }
                | FindingKind::ZeroInVersion2 { .. }
        )
    }

    /// What `qemu-img check` prints on standard error for it, without the last newline; it may be several lines.
    /// `None` where QEMU prints nothing: it does not look for it, or counts it silently.
    ///
    /// `writable` says whether QEMU would have opened the image for writing, to repair it.
    pub fn qemu_line(&self, writable: bool) -> Option<String> {
        if self.beyond_qemu() || matches!(self.kind, FindingKind::Bitmaps { .. }) {
            return None;
        }
        let mut line = String::new();
        // Writing to a string does not fail.
        let _ = self.write_line(writable, &mut line);
        Some(line)
    }

    fn write_line(&self, writable: bool, out: &mut String) -> std::fmt::Result {
        use FindingKind as Kind;
        let repaired = self.outcome == Outcome::Repaired;
        let verb = if repaired { "Repairing" } else { "ERROR" };
        match &self.kind {
            Kind::PastEnd { offset, size } => write!(
                out,
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                 offset {offset:#x} size {size:#x}"
            ),
            Kind::RefcountOverflow { offset } => write!(
                out,
                "ERROR: overflow cluster offset={offset:#x}\nUse qemu-img amend to increase the refcount entry width \
                 or qemu-img convert to create a clean copy if the image cannot be opened for writing"
            ),
            Kind::Refcount {
                cluster,
                refcount,
                references,
            } => {
                let verb = match (repaired, refcount < references) {
                    (true, _) => "Repairing",
                    (false, true) => "ERROR",
                    (false, false) => "Leaked",
                };
                write!(
                    out,
                    "{verb} cluster {cluster} refcount={refcount} reference={references}"
                )
            }
            Kind::RefcountUnreadable { cluster } => {
                write!(
                    out,
                    "Can't get refcount for cluster {cluster}: Input/output error"
                )
            }
            Kind::RefcountBlockUnusable { offset, index } => {
                let (what, then) = if writable {
                    ("Marking image as corrupt", "further corruption events")
                } else {
                    ("Image is corrupt", "further non-fatal corruption events")
                };
                write!(
                    out,
                    "qcow2: {what}: Refblock offset {offset:#x} unaligned (reftable index: {}); \
                     {then} will be suppressed",
                    hex_as_c(*index)
                )
            }
            Kind::RefcountTableReserved { index } => {
                write!(out, "ERROR refcount table entry {index} has reserved bits set")
            }
            Kind::RefcountBlockUnaligned { index } => write!(
                out,
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            ),
            Kind::RefcountBlockOutside { index } => {
                write!(out, "{verb} refcount block {index} is outside image")
            }
            Kind::RefcountBlockShared { index, references } => {
                write!(out, "ERROR refcount block {index} refcount={references}")
            }
            Kind::L1Reserved { entry } => {
                write!(out, "ERROR found L1 entry with reserved bits set: {entry:x}")
            }
            Kind::L2Unaligned { offset } => write!(
                out,
                "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
            ),
            Kind::L2Reserved { entry } => {
                write!(out, "ERROR found l2 entry with reserved bits set: {entry:x}")
            }
            Kind::TableUnreadable { l1 } => write!(
                out,
                "ERROR: I/O error in check_refcounts_{}",
                if *l1 { "l1" } else { "l2" }
            ),
            Kind::CompressedCopied { offset } => write!(
                out,
                "ERROR: coffset={}: copied flag must never be set for compressed clusters",
                format_args!("0x{offset:x}")
            ),
            Kind::CompressedWithDataFile { index, entry } => write!(
                out,
                "ERROR compressed cluster {index} with data file, entry=0x{entry:x}"
            ),
            Kind::CompressedWithBitmap { index, entry } => write!(
                out,
                "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry=0x{entry:x}"
            ),
            Kind::SubclusterBitmap { offset } => write!(
                out,
                "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
            ),
            Kind::UnallocatedBitmap => {
                out.write_str("ERROR: Unallocated cluster has non-zero subcluster allocation map")
            }
            Kind::DataUnaligned { offset } => write!(
                out,
                "ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted."
            ),
            Kind::PreallocatedUnaligned { offset } => write!(
                out,
                "{verb} offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
            ),
            Kind::SnapshotsWithDataFile { count } => {
                write!(out, "ERROR {count} snapshots in image with data file")
            }
            Kind::SnapshotL1Unaligned { id, name, offset } => write!(
                out,
                "ERROR snapshot {id} ({name}) l1_offset={}: L1 table is not cluster aligned; \
                 snapshot table entry corrupted",
                hex_as_c(*offset)
            ),
            Kind::SnapshotL1TooLarge { id, name, entries } => write!(
                out,
                "ERROR snapshot {id} ({name}) l1_size={}: L1 table is too large; snapshot table entry corrupted",
                hex_as_c((*entries).into())
            ),
            Kind::SnapshotTable { why, hint } => {
                write!(out, "qemu-img: ERROR failed to read the snapshot table: {why}")?;
                hint.as_ref().map_or(Ok(()), |hint| write!(out, "\n{hint}"))
            }
            Kind::SnapshotIncomplete { index } => {
                write!(out, "{verb} snapshot table entry {index} is incomplete")
            }
            Kind::CopiedL2 {
                index,
                entry,
                refcount,
            } => write!(
                out,
                "{verb} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
            ),
            Kind::CopiedData { entry, refcount } => write!(
                out,
                "{verb} OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}"
            ),
            Kind::Rebuilding => out.write_str("Rebuilding refcount structure"),
            Kind::RefcountsRetired {
                cluster,
                refcount,
                references,
            } => write!(
                out,
                "Repairing cluster {cluster} refcount={refcount} reference={references}"
            ),
            Kind::NeedsRebuild => out.write_str("ERROR need to rebuild refcount structures"),
            Kind::Bitmaps { why } => out.write_str(why),
            Kind::Overlap { offset, what } => {
                write!(out, "cluster at {offset:#x} holds {what} and something else")
            }
            Kind::BackingNameOutside { offset } => write!(
                out,
                "the backing file name at {offset:#x} lies outside the first cluster"
            ),
            Kind::ZeroInVersion2 { entry } => {
                write!(out, "zero cluster entry in a version 2 image: {entry:x}")
            }
        }
    }
}

impl std::fmt::Display for Finding {
    /// The line that QEMU prints, or ours where it prints none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut line = String::new();
        self.write_line(false, &mut line)?;
        f.write_str(&line)
    }
}

/// A number as C prints it with `%#x`: zero has no prefix.
fn hex_as_c(number: u64) -> String {
    match number {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}
