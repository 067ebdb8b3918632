//! `catena blockdev`: what libvirt gives QEMU for a disk.

use super::show::domain::no_disk;
use super::xml::chains;
use crate::domain::{self, Version};
use crate::error::CommandError;
use crate::output;
use crate::target::{PolicyArgs, parse_format, warn_probed};
use catena::detect::quoted;
use catena::reference::{XmlElement, escape_xml};
use catena::{Error, ErrorKind, Format, Start, detect};
use catena_virt::blockdev::{self, Options, Tree};
use catena_virt::{Document, numbered};
use clap::ValueEnum;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena blockdev vm.qcow2
  catena blockdev --domain vm.xml --as qmp
  catena blockdev --as storage-daemon vm.qcow2 | xargs qemu-storage-daemon …
  qemu-img map \"$(catena blockdev --as json vm.qcow2)\"

Nodes have the names, order and properties that libvirt 11.3 gives them beside
QEMU 9 or later; --libvirt 9.0 writes the older shape, where raw layers have
a format node. The node for the guest's device is the last of each disk.")]
pub struct Args {
    /// The active image of the chain: a file or block device
    #[arg(required_unless_present = "domain")]
    target: Option<PathBuf>,
    /// The active image's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format, conflicts_with = "domain")]
    format: Option<Format>,
    /// The disks of a domain: a file of XML ('-' is standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    domain: Option<PathBuf>,
    /// This disk of the domain alone, by its target
    #[arg(long, conflicts_with = "target")]
    disk: Option<String>,
    /// How to write it
    #[arg(long = "as", value_enum, default_value_t, value_name = "FORM")]
    form: Form,
    /// The libvirt that knows the volumes of pools that the domain names
    #[arg(long, value_name = "URI", conflicts_with = "target")]
    connect: Option<String>,
    /// Whose shapes: those of libvirt 11.3 or 9.0
    #[arg(long, value_enum, default_value_t, value_name = "VERSION")]
    libvirt: Version,
    /// A file that holds a secret, by the uuid or usage that the XML names
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_secret)]
    secret: Vec<(String, PathBuf)>,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Arguments for QEMU, as a shell takes them
    #[default]
    Args,
    /// Commands for QEMU's monitor, one a line
    Qmp,
    /// One file name that begins with json:
    Json,
    /// Arguments for qemu-storage-daemon
    StorageDaemon,
}

fn parse_secret(text: &str) -> Result<(String, PathBuf), String> {
    // What a secret is used for may hold anything.
    text.rsplit_once('=')
        .map(|(name, file)| (name.to_owned(), file.into()))
        .ok_or_else(|| "it is not NAME=FILE".to_owned())
}

/// Prints it.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let document = match (&args.domain, &args.target) {
        (Some(file), _) => domain::read_with_volumes(file, args.connect.as_deref())?,
        (None, target) => of_image(args, target.as_deref().unwrap_or(Path::new("")))?,
    };
    if let Some(name) = &args.disk
        && document.disk(name).is_none()
    {
        return Err(no_disk(name, &document));
    }
    let only = args.disk.as_deref().and_then(|name| document.disk(name));
    let wanted = |disk: &catena_virt::Disk| only.is_none_or(|only| only.span == disk.span);
    let chains = chains(&document, &policy, wanted)?;
    let options = Options {
        generation: args.libvirt.into(),
        secrets: args.secret.iter().cloned().collect(),
    };
    let mut running = numbered::number(&document, &chains, options.generation);
    let mut trees = Vec::new();
    for place in document.order() {
        let Some(disk) = document.disks.get(place) else {
            continue;
        };
        let running = running.get_mut(place).and_then(Option::take);
        match running {
            Some(running) if wanted(disk) => {
                let refused =
                    |error: blockdev::BlockdevError| Error::new(ErrorKind::Unsupported, error.to_string());
                trees.push(blockdev::tree(&running, &options).map_err(refused)?);
            }
            None if only.is_some() && wanted(disk) => {
                let why = disk
                    .chain(&policy)
                    .err()
                    .unwrap_or_else(|| "it is an SD card".to_owned());
                let message = format!("'{}' has no nodes: {why}", disk.name());
                return Err(Error::new(ErrorKind::Unsupported, message).into());
            }
            _ => {}
        }
    }
    let mut out = output::stdout();
    once(&mut trees);
    for tree in &trees {
        write(tree, args.form, &mut out)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Leaves to the first disk what several need.
fn once(trees: &mut [Tree]) {
    let mut seen = Vec::new();
    for tree in trees {
        tree.objects.retain(|object| !seen.contains(object));
        seen.extend(tree.objects.iter().cloned());
    }
}

/// A document for an image alone, as a user would write it.
fn of_image(args: &Args, target: &Path) -> Result<Document, CommandError> {
    let unusable = |why: String| Error::new(ErrorKind::Unsupported, why).with_path(target);
    let chain = detect(&Start::at(target, args.format), &args.policy.load()?);
    let Some(active) = chain.active() else {
        return Err(match chain.end {
            catena::chain::End::Broken(broken) => broken.error.into(),
            _ => unusable("there is no image".to_owned()).into(),
        });
    };
    if active.description.encryption.is_some() {
        let why =
            "the image is encrypted: its secret is named by an <encryption> in XML, which --domain takes";
        return Err(unusable(why.to_owned()).into());
    }
    warn_probed(&chain);
    let path = std::path::absolute(target).map_err(|error| unusable(error.to_string()))?;
    let text = path.to_str().filter(|text| escape_xml(text, &mut String::new()));
    let text = text.ok_or_else(|| unusable("libvirt takes no name with such bytes".to_owned()))?;
    let is_block = active.source.type_name() == "block"
        || active
            .file
            .as_ref()
            .is_some_and(|file| file.storage.is_block_device());
    let mut driver = XmlElement::new("driver");
    driver.attribute("name", "qemu");
    driver.attribute("type", active.format.libvirt());
    let mut source = XmlElement::new("source");
    source.attribute(if is_block { "dev" } else { "file" }, text);
    let mut guest = XmlElement::new("target");
    guest.attribute("dev", "vda");
    guest.attribute("bus", "virtio");
    let mut disk = XmlElement::new("disk");
    disk.attribute("type", if is_block { "block" } else { "file" });
    for child in [&driver, &source, &guest] {
        disk.child(child);
    }
    Document::parse(disk.finish()).map_err(|error| unusable(error.to_string()).into())
}

fn write(tree: &Tree, form: Form, out: &mut impl Write) -> Result<(), CommandError> {
    let (object, node) = match form {
        Form::Args => ("-object", "-blockdev"),
        Form::StorageDaemon => ("--object", "--blockdev"),
        Form::Qmp => {
            for object in &tree.objects {
                writeln!(out, "{}", json!({"execute": "object-add", "arguments": object}))?;
            }
            for node in &tree.nodes {
                writeln!(out, "{}", json!({"execute": "blockdev-add", "arguments": node}))?;
            }
            return Ok(());
        }
        Form::Json => {
            let refused =
                |error: blockdev::BlockdevError| Error::new(ErrorKind::Unsupported, error.to_string());
            writeln!(out, "json:{}", tree.nested().map_err(refused)?)?;
            return Ok(());
        }
    };
    for value in &tree.objects {
        writeln!(out, "{object} {}", quoted(value.to_string()))?;
    }
    for value in &tree.nodes {
        writeln!(out, "{node} {}", quoted(value.to_string()))?;
    }
    Ok(())
}
