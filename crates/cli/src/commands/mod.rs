//! The verbs. Each file has an `Args` that clap fills in and a `run` that does it and gives the exit status.

pub mod access;
pub mod amend;
pub mod bench;
pub mod bitmap;
pub mod blockdev;
mod change;
pub mod check;
pub mod children;
pub mod commit;
pub mod compare;
pub mod completions;
pub mod convert;
pub mod create;
pub mod dd;
pub mod deps;
pub mod diff;
pub mod doctor;
pub mod export;
mod facts;
pub mod flatten;
mod forest;
pub mod fork;
pub mod gc;
pub mod hash;
pub mod heal;
pub mod import;
pub mod info;
pub mod man;
pub mod map;
pub mod measure;
pub mod move_to;
mod moves;
mod moving;
mod operation;
mod options;
pub mod prune;
pub mod qemu_img;
pub mod rebase;
pub mod reference;
pub mod relink;
pub mod rename;
pub mod resize;
pub mod resume;
pub mod rm;
pub mod show;
pub mod snapshot;
mod snapshot_all;
mod snapshot_domain;
mod snapshot_request;
pub mod snapshot_xml;
pub mod stamp;
pub mod stream;
pub mod tour;
pub mod tree;
pub mod volume_xml;
pub mod why;
pub mod xml;

use crate::error::CommandError;
use std::process::ExitCode;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Draw the chain, and what each layer holds
    Show(show::Args),
    /// Tell all about one image, and open nothing that it names
    Info(info::Args),
    /// Tell which layer holds what of the guest's disk, and where
    Map(map::Args),
    /// Digest what the guest sees, as its raw image would be digested
    Hash(hash::Args),
    /// Find what is wrong with chains, say what cures it, and mend what can be mended
    Doctor(doctor::Args),
    /// Draw all images below some folders, and which stands on which
    Tree(tree::Args),
    /// List the images that stand on one
    Children(children::Args),
    /// List the files that images need
    Deps(deps::Args),
    /// Tell whether an image may be deleted, moved or written, and who would suffer
    Why(why::Args),
    /// Make a new image, alone or over a backing image
    Create(create::Args),
    /// Make many new overlays of one base, all of them or none
    Fork(fork::Args),
    /// Write what a chain shows as another image
    Convert(convert::Args),
    /// Write what layers hold into a layer below them
    Commit(commit::Args),
    /// Pull what lower layers hold up into an image
    Stream(stream::Args),
    /// Make an image hold everything its guest sees, in place or as a new file
    Flatten(flatten::Args),
    /// Write layers of a chain and all they need as one file, with digests
    Export(export::Args),
    /// Restore the layers of exported files, to any point
    Import(import::Args),
    /// Put an image on another backing image, and copy into it what would change
    Rebase(rebase::Args),
    /// Remove images, unless others stand on them; those can take in first what they would lose
    Rm(rm::Args),
    /// Let points in time leave a chain that are not worth keeping any more
    Prune(prune::Args),
    /// Find what housekeeping left, and what nothing needs
    Gc(gc::Args),
    /// Rewrite what an overlay records about its backing image, if its guest's view stays
    Relink(relink::Args),
    /// Move images and folders, and lead everything that names them to the new place
    Move(move_to::Args),
    /// Give an image another name, in everything that names it too
    Rename(rename::Args),
    /// Finish what was cut off, or take it back
    Resume(resume::Args),
    /// Find what images have lost, and have them record where it is
    Heal(heal::Args),
    /// Have overlays know what they stand on, and hold them against it
    Stamp(stamp::Args),
    /// Tell whether two disks show their guests the same
    Compare(compare::Args),
    /// Tell where two disks show their guests something else
    Diff(diff::Args),
    /// Tell how large a new image would become
    Measure(measure::Args),
    /// Find what is wrong inside an image, and repair it
    Check(check::Args),
    /// Make a disk larger or smaller
    Resize(resize::Args),
    /// Change options of an image that exists
    Amend(amend::Args),
    /// List, take, go back to and delete internal snapshots; make overlays over images or a whole domain
    Snapshot(snapshot::Args),
    /// List and change persistent bitmaps
    Bitmap(bitmap::Args),
    /// Copy a part of what a chain shows
    Dd(dd::Args),
    /// Time requests to a chain
    Bench(bench::Args),
    /// Say what a recorded backing reference means
    Reference(reference::Args),
    /// Change libvirt's XML: write a chain into it, take it out, edit it
    Xml(xml::Args),
    /// Print what libvirt gives QEMU for a disk: -blockdev and its likes
    Blockdev(blockdev::Args),
    /// Print libvirt's <domainsnapshot> of an external snapshot, or look at one
    SnapshotXml(snapshot_xml::Args),
    /// Print an image as libvirt's storage pools show it
    VolumeXml(volume_xml::Args),
    /// Tell what libvirt grants of a chain's files and whether QEMU's user can open them, and make it so
    Access(access::Args),
    /// Be qemu-img, by that name
    #[command(name = "qemu-img")]
    QemuImg(qemu_img::Args),
    /// Watch a chain being made, broken and mended, in a temporary folder
    Tour(tour::Args),
    /// Print what a shell needs to complete this command line
    Completions(completions::Args),
    /// Write the manual pages into a folder
    Man(man::Args),
}

impl Command {
    /// Does it.
    pub fn run(&self) -> Result<ExitCode, CommandError> {
        match self {
            Self::Show(args) => show::run(args),
            Self::Info(args) => info::run(args),
            Self::Map(args) => map::run(args),
            Self::Hash(args) => hash::run(args),
            Self::Doctor(args) => doctor::run(args),
            Self::Reference(args) => Ok(reference::run(args)),
            Self::Tree(args) => tree::run(args),
            Self::Children(args) => children::run(args),
            Self::Deps(args) => deps::run(args),
            Self::Why(args) => why::run(args),
            Self::Create(args) => create::run(args),
            Self::Fork(args) => fork::run(args),
            Self::Convert(args) => convert::run(args),
            Self::Commit(args) => commit::run(args),
            Self::Stream(args) => stream::run(args),
            Self::Flatten(args) => flatten::run(args),
            Self::Export(args) => export::run(args),
            Self::Import(args) => import::run(args),
            Self::Rebase(args) => rebase::run(args),
            Self::Rm(args) => rm::run(args),
            Self::Prune(args) => prune::run(args),
            Self::Gc(args) => gc::run(args),
            Self::Relink(args) => relink::run(args),
            Self::Move(args) => move_to::run(args),
            Self::Rename(args) => rename::run(args),
            Self::Resume(args) => resume::run(args),
            Self::Heal(args) => heal::run(args),
            Self::Stamp(args) => stamp::run(args),
            Self::Compare(args) => compare::run(args),
            Self::Diff(args) => diff::run(args),
            Self::Measure(args) => measure::run(args),
            Self::Check(args) => check::run(args),
            Self::Resize(args) => resize::run(args),
            Self::Amend(args) => amend::run(args),
            Self::Snapshot(args) => snapshot::run(args),
            Self::Bitmap(args) => bitmap::run(args),
            Self::Dd(args) => dd::run(args),
            Self::Bench(args) => bench::run(args),
            Self::Xml(args) => xml::run(args),
            Self::Blockdev(args) => blockdev::run(args),
            Self::SnapshotXml(args) => snapshot_xml::run(args),
            Self::VolumeXml(args) => volume_xml::run(args),
            Self::Access(args) => access::run(args),
            Self::QemuImg(args) => Ok(qemu_img::run(args)),
            Self::Tour(args) => tour::run(args),
            Self::Completions(args) => completions::run(args),
            Self::Man(args) => man::run(args),
        }
    }
}
