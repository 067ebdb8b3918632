//! `catena info`: one image in full, and nothing of what it names.

mod model;
mod qcow2;
mod text;

use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::parse_format;
use catena::{Chain, End, Error, ErrorKind, Format, Policy, Start, detect};
use model::Image;
pub use qcow2::{ShownBitmap, ShownSnapshot};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
pub use text::snapshot_rows;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena info vm.qcow2
  catena info --output json upload.img | jq '.backing.text, .data_file.text'

Nothing that the image names is opened, and nothing is locked: images of
strangers and of running guests can be looked at.
'catena show' follows the chain.")]
pub struct Args {
    /// The image: a file or block device
    image: PathBuf,
    /// The image's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

/// Says all that the image's metadata says.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    // References lead nowhere under this policy, so the walk ends after the header.
    let alone = Policy::parse("alone", "[reach]\nschemes = []\ndata-files = false")?;
    let chain = detect(&Start::at(&args.image, args.format), &alone);
    let Chain { layers, end, .. } = chain;
    let Some(layer) = layers.first() else {
        return Err(match end {
            End::Broken(broken) => broken.error,
            _ => Error::new(ErrorKind::NotFound, "there is no image").with_path(&args.image),
        }
        .into());
    };
    let image = Image::of(layer);
    let mut out = output::stdout();
    match args.output {
        Output::Human => text::write(&image, &mut out)?,
        Output::Json => output::json(&image, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
