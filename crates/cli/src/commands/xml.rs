//! `catena xml`: libvirt's XML, changed in place byte by byte, or as libvirt would show it.

use super::show::domain::no_disk;
use crate::domain::{self, Version};
use crate::error::CommandError;
use crate::output;
use crate::target::{PolicyArgs, parse_format};
use catena::chain::End;
use catena::reference::{Location, Reading, Reference, Source};
use catena::{Chain, Error, ErrorKind, Format, Policy};
use catena_virt::edit::{Edit, EditError};
use catena_virt::{Disk, Document, live};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The changed document goes to standard output, or with --in-place to where it
came from. Whatever the change is not about keeps every byte: comments, order,
quotes, indentation.

Examples:
  catena xml pin vm.xml --in-place
      libvirt believes the whole chain from now on, and reads no header of it
  catena xml strip vm.xml --disk vda
      libvirt looks for the chain again
  catena xml relocate vm.xml --from /old --to /new
  virsh dumpxml --inactive vm | catena xml pin - | virsh define /dev/stdin")]
pub struct Args {
    #[command(subcommand)]
    change: Change,
}

#[derive(Debug, clap::Subcommand)]
enum Change {
    /// Write the layers that are detected; libvirt goes on looking below the last
    Complete(Detected),
    /// Write the whole chain and its end, for a definition in which libvirt looks for nothing
    Pin(Detected),
    /// Take the chain out, so that libvirt looks for it
    Strip(Common),
    /// Put an image below a layer, instead of what the XML has there
    SetBacking(SetBacking),
    /// Give a layer another image or format
    Replace(Replace),
    /// Rewrite the paths in one folder to lie in another
    Relocate(Relocate),
    /// Show what libvirt shows while the guest runs: the chain with its index attributes
    Live(Live),
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The document: a domain, disk or domainsnapshot; '-' is standard input
    file: PathBuf,
    /// Change this disk alone, by its target
    #[arg(long)]
    disk: Option<String>,
    /// Write the document to where it came from
    #[arg(short, long)]
    in_place: bool,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// For what looks at the images.
#[derive(Debug, clap::Args)]
struct Detected {
    #[command(flatten)]
    common: Common,
    /// The libvirt that knows the volumes of pools that the document names
    #[arg(long, value_name = "URI")]
    connect: Option<String>,
}

impl Detected {
    fn read(&self) -> Result<Document, CommandError> {
        domain::read_with_volumes(&self.common.file, self.connect.as_deref())
    }
}

#[derive(Debug, clap::Args)]
struct Live {
    #[command(flatten)]
    detected: Detected,
    /// Whose ways: those of libvirt 11.3 or 9.0
    #[arg(long, value_enum, default_value_t, value_name = "VERSION")]
    libvirt: Version,
}

#[derive(Debug, clap::Args)]
struct SetBacking {
    #[command(flatten)]
    common: Common,
    /// The layer whose backing image it is, the active one being 0
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    layer: usize,
    /// The backing image: a file, or what an overlay would record
    #[arg(
        short,
        long,
        value_name = "NAME",
        required_unless_present = "none",
        requires = "backing_format"
    )]
    backing: Option<String>,
    /// Its format
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format)]
    backing_format: Option<Format>,
    /// None: the chain ends there
    #[arg(long, conflicts_with_all = ["backing", "backing_format"])]
    none: bool,
}

#[derive(Debug, clap::Args)]
struct Replace {
    #[command(flatten)]
    common: Common,
    /// The layer, the active one being 0
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    layer: usize,
    /// The image to have there: a file, or what an overlay would record
    #[arg(long, value_name = "NAME", required_unless_present = "format")]
    image: Option<String>,
    /// The format that it is in
    #[arg(short, long, value_name = "FORMAT", value_parser = parse_format)]
    format: Option<Format>,
}

#[derive(Debug, clap::Args)]
struct Relocate {
    /// The document: a domain, disk or domainsnapshot; '-' is standard input
    file: PathBuf,
    /// The folder in which the paths lie
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The folder in which they are to lie
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Write the document to where it came from
    #[arg(short, long)]
    in_place: bool,
}

/// Changes it.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    match &args.change {
        Change::Complete(args) => fill_in(args, |edit, disk, chain| edit.complete(disk, chain)),
        Change::Pin(args) => fill_in(args, |edit, disk, chain| edit.pin(disk, chain)),
        Change::Strip(common) => {
            let document = domain::read(&common.file)?;
            let mut edit = Edit::new(&document);
            for disk in chosen(&document, common)? {
                edit.strip(disk);
            }
            finish(edit, &common.file, common.in_place)
        }
        Change::SetBacking(args) => {
            let document = domain::read(&args.common.file)?;
            let mut edit = Edit::new(&document);
            let source = args.backing.as_deref().map(source).transpose()?;
            let backing = source.as_ref().zip(args.backing_format);
            edit.set_backing(one(&document, &args.common)?, args.layer, backing)?;
            finish(edit, &args.common.file, args.common.in_place)
        }
        Change::Replace(args) => {
            let document = domain::read(&args.common.file)?;
            let mut edit = Edit::new(&document);
            let source = args.image.as_deref().map(source).transpose()?;
            edit.replace(
                one(&document, &args.common)?,
                args.layer,
                source.as_ref(),
                args.format,
            )?;
            finish(edit, &args.common.file, args.common.in_place)
        }
        Change::Relocate(args) => {
            let document = domain::read(&args.file)?;
            let mut edit = Edit::new(&document);
            if edit.relocate(&args.from, &args.to)? == 0 {
                let message = format!("the document names nothing in '{}'", args.from.display());
                return Err(Error::new(ErrorKind::NotFound, message)
                    .with_path(&args.file)
                    .into());
            }
            finish(edit, &args.file, args.in_place)
        }
        Change::Live(Live { detected, libvirt }) => {
            let document = detected.read()?;
            let common = &detected.common;
            let policy = common.policy.load()?;
            let wanted: Vec<_> = chosen(&document, common)?
                .iter()
                .map(|disk| disk.span.clone())
                .collect();
            // Numbers depend on all disks, whichever are shown.
            let chains = chains(&document, &policy, |disk| wanted.contains(&disk.span))?;
            let text = live::live(&document, &chains, (*libvirt).into())?;
            write(&text, &common.file, common.in_place)
        }
    }
}

/// The chain of each disk that has one. Where a wanted one is broken, libvirt would start no guest.
pub fn chains(
    document: &Document,
    policy: &Policy,
    wanted: impl Fn(&Disk) -> bool,
) -> Result<Vec<Option<Chain>>, CommandError> {
    let mut chains = Vec::new();
    for disk in &document.disks {
        chains.push(match disk.chain(policy) {
            Ok(chain) => match chain.end {
                End::Broken(broken) if wanted(disk) => return Err(broken.error.into()),
                _ => Some(chain),
            },
            Err(_) => None,
        });
    }
    Ok(chains)
}

fn fill_in(
    args: &Detected,
    fill: impl Fn(&mut Edit<'_>, &Disk, &Chain) -> Result<(), EditError>,
) -> Result<ExitCode, CommandError> {
    let document = args.read()?;
    let common = &args.common;
    let policy = common.policy.load()?;
    let mut edit = Edit::new(&document);
    for disk in chosen(&document, common)? {
        let chain = match disk.chain(&policy) {
            Ok(chain) => chain,
            // Unless it was asked for, a drive without an image is left alone.
            Err(_) if common.disk.is_none() => continue,
            Err(why) => return Err(refused_because(format!("'{}' has no chain: {why}", disk.name()))),
        };
        if let End::Broken(broken) = chain.end {
            return Err(broken.error.into());
        }
        fill(&mut edit, disk, &chain)?;
    }
    finish(edit, &common.file, common.in_place)
}

/// The disks that are to be changed.
fn chosen<'a>(document: &'a Document, common: &Common) -> Result<Vec<&'a Disk>, CommandError> {
    match &common.disk {
        Some(name) => Ok(vec![document.disk(name).ok_or_else(|| no_disk(name, document))?]),
        None => Ok(document.disks.iter().collect()),
    }
}

/// The disk that is to be changed.
fn one<'a>(document: &'a Document, common: &Common) -> Result<&'a Disk, CommandError> {
    match chosen(document, common)?.as_slice() {
        [disk] => Ok(disk),
        disks => {
            let names: Vec<_> = disks.iter().map(|disk| disk.name()).collect();
            Err(Error::new(ErrorKind::Conflict, "which disk is to be changed?")
                .with_hint(format!("choose it with --disk; there are {}", names.join(", ")))
                .into())
        }
    }
}

/// Where a name leads that the user gives. libvirt wants whole paths.
fn source(name: &str) -> Result<Source, CommandError> {
    let bad = |message: String| CommandError::from(Error::new(ErrorKind::BadReference, message));
    let reference = Reference::parse(name, Reading::Catena).map_err(|error| bad(error.to_string()))?;
    let mut source = reference.unresolved();
    if let Location::File(path) = &mut source.location {
        *path = std::path::absolute(&*path).map_err(|error| bad(format!("'{name}': {error}")))?;
        if std::fs::metadata(&*path).is_ok_and(|metadata| is_block(&metadata)) {
            source.location = Location::Block(path.clone());
        }
    }
    Ok(source)
}

fn is_block(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.file_type().is_block_device()
}

impl From<EditError> for CommandError {
    fn from(error: EditError) -> Self {
        refused_because(error.to_string())
    }
}

fn refused_because(message: String) -> CommandError {
    Error::new(ErrorKind::Conflict, message).into()
}

fn finish(edit: Edit<'_>, file: &Path, in_place: bool) -> Result<ExitCode, CommandError> {
    write(&edit.finish()?, file, in_place)
}

/// Writes the document, complete or not at all where it replaces the old one.
fn write(text: &str, file: &Path, in_place: bool) -> Result<ExitCode, CommandError> {
    if !in_place || file.as_os_str() == "-" {
        let mut out = output::stdout();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let io = |error: std::io::Error| {
        CommandError::from(
            Error::new(ErrorKind::Io, "cannot write the document")
                .with_path(file)
                .with_source(error),
        )
    };
    // Through links, to where the document is.
    let real = file.canonicalize().map_err(io)?;
    let folder = real.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    new.write_all(text.as_bytes()).map_err(io)?;
    let permissions = std::fs::metadata(&real).map_err(io)?.permissions();
    new.as_file().set_permissions(permissions).map_err(io)?;
    new.as_file().sync_all().map_err(io)?;
    new.persist(&real).map_err(|error| io(error.error))?;
    Ok(ExitCode::SUCCESS)
}
