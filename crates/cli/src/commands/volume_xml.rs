//! `catena volume-xml`: an image as libvirt's storage pools show it.

use crate::error::CommandError;
use crate::output;
use crate::target::{PolicyArgs, parse_format};
use crate::text;
use catena::Format;
use catena::chain::{Break, End};
use catena_virt::volume::{Request, volume};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It is what 'virsh vol-dumpxml' prints of the image in a pool of folders: its
format is the one that libvirt probes, and of the chain it has the one image
below.

Example:
  catena volume-xml /var/lib/libvirt/images/vm.qcow2")]
pub struct Args {
    /// The image: a file or block device
    image: PathBuf,
    /// Its format; probed as libvirt does where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The volume's name [default: the file's]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// Prints it. Where the image below is not what a guest could start with, that is said on standard error.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let request = Request {
        path: &args.image,
        format: args.format,
        name: args.name.as_deref(),
    };
    let volume = volume(&request, &args.policy.load()?)?;
    if let (1, End::Broken(broken)) = (volume.chain.layers.len(), &volume.chain.end) {
        note(broken);
    }
    let mut out = output::stdout();
    out.write_all(volume.xml.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn note(broken: &Break) {
    let _ = writeln!(
        anstream::stderr(),
        "catena: {}",
        text::printable(&broken.error.to_string())
    );
}
