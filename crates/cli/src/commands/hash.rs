//! `catena hash`: a digest of what the guest sees.

use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::{TargetArgs, warn_probed};
use catena::ops::hash::{Digests, Request, hash};
use catena::{Error, ErrorKind, detect};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena hash vm.qcow2
  catena hash --algorithm sha256 --layer 1 vm.qcow2
  catena hash --snapshot before-upgrade vm.qcow2

The digest is that of the raw image with the same content, as 'qemu-img
convert -O raw' makes it; formats, compression and the number of layers make
no difference. What is known to be zeros is not read.")]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Which digest; may be given several times
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "blake3",
        value_name = "NAME"
    )]
    algorithm: Vec<Algorithm>,
    /// Digest what a guest of this layer would see, 0 being the active one
    #[arg(long, value_name = "N", default_value_t = 0)]
    layer: usize,
    /// Digest the disk as it was when this internal snapshot was taken, by id or name
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "layer")]
    snapshot: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Algorithm {
    Blake3,
    Sha256,
}

#[derive(Debug, Serialize)]
struct Report {
    target: String,
    layer: usize,
    snapshot: Option<String>,
    size: u64,
    read: u64,
    blake3: Option<String>,
    sha256: Option<String>,
}

/// Digests the disk.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let chain = detect(&args.target.start(), &args.target.policy()?);
    if args.output == Output::Human {
        warn_probed(&chain);
    }
    chain.check_not_encrypted(if args.snapshot.is_some() { 0 } else { args.layer })?;
    let sharing = args.target.sharing();
    let disk = match &args.snapshot {
        Some(snapshot) => chain.open_snapshot(snapshot, sharing)?,
        None => chain.open_from(args.layer, sharing)?,
    };
    let request = Request {
        blake3: args.algorithm.contains(&Algorithm::Blake3),
        sha256: args.algorithm.contains(&Algorithm::Sha256),
    };
    let digests = hash(&disk, request, &Progress::start("hashing"))?;
    let mut out = output::stdout();
    match args.output {
        Output::Json => output::json(&report(args, &digests), &mut out)?,
        Output::Human => {
            for algorithm in &args.algorithm {
                let (name, digest) = match algorithm {
                    Algorithm::Blake3 => ("blake3", digests.blake3),
                    Algorithm::Sha256 => ("sha256", digests.sha256),
                };
                let digest =
                    digest.ok_or_else(|| Error::new(ErrorKind::Conflict, "the digest was not computed"))?;
                writeln!(out, "{name}:{}", hex(&digest))?;
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn report(args: &Args, digests: &Digests) -> Report {
    Report {
        target: args.target.target.display().to_string(),
        layer: args.layer,
        snapshot: args.snapshot.clone(),
        size: digests.size,
        read: digests.read,
        blake3: digests.blake3.as_ref().map(hex),
        sha256: digests.sha256.as_ref().map(hex),
    }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
