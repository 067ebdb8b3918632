//! `catena bench`: how fast a chain is read or written.

use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::TargetArgs;
use crate::text;
use catena::ops::bench::{self, Request, Target, Write as Writing};
use catena::{Error, ErrorKind};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena bench vm.qcow2
  catena bench vm.qcow2 --bytes 64k --depth 8 --count 10000
  catena bench scratch.qcow2 --write --pattern 65 --flush-interval 100

--write overwrites what the guest sees: use it on images you can lose.")]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// How many requests
    #[arg(short, long, value_name = "NUMBER", default_value_t = 75_000)]
    count: u64,
    /// How many of them at once
    #[arg(short, long, value_name = "NUMBER", default_value_t = 64)]
    depth: usize,
    /// Bytes of each; k and M are understood
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size, default_value = "4k")]
    bytes: u64,
    /// How far each is behind the one before; as far as it is long where it is not given
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size)]
    step: Option<u64>,
    /// Where the first one is
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size, default_value = "0")]
    offset: u64,
    /// Write instead of reading, which destroys what is there
    #[arg(short, long)]
    write: bool,
    /// The byte that is written
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "write")]
    pattern: u8,
    /// Flush after so many requests
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "write")]
    flush_interval: u64,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report {
    requests: u64,
    bytes: u64,
    seconds: f64,
    requests_per_second: f64,
    bytes_per_second: f64,
}

/// Sends requests.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    const MOST_BYTES: u64 = 1 << 30;
    if args.bytes > MOST_BYTES {
        return Err(Error::new(ErrorKind::TooLarge, "a request has at most 1 GiB").into());
    }
    let request = Request {
        count: args.count,
        depth: args.depth,
        bytes: usize::try_from(args.bytes).unwrap_or_default(),
        offset: args.offset,
        step: args.step,
        write: args.write.then_some(Writing {
            pattern: args.pattern,
            flush_interval: args.flush_interval,
        }),
    };
    let chain = args.target.detect()?;
    let progress = if args.quiet {
        Progress::quiet()
    } else {
        Progress::start("sending requests")
    };
    let taken = if args.write {
        let writable = chain.open_writable(0, args.target.sharing())?;
        let taken = bench::bench(&request, Target::Write(&**writable.disk()), &progress)?;
        writable.finish()?;
        taken
    } else {
        bench::bench(
            &request,
            Target::Read(&chain.open(args.target.sharing())?),
            &progress,
        )?
    };
    drop(progress);
    let seconds = taken.as_secs_f64().max(1e-9);
    let report = Report {
        requests: args.count,
        bytes: args.bytes,
        seconds,
        requests_per_second: args.count as f64 / seconds,
        bytes_per_second: (args.count as f64) * (args.bytes as f64) / seconds,
    };
    if args.quiet {
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = output::stdout();
    match args.output {
        Output::Json => output::json(&report, &mut out)?,
        Output::Human => writeln!(
            out,
            "{} of {} in {seconds:.3} s: {:.0} a second, {} a second",
            text::count(report.requests, "request"),
            text::size(report.bytes),
            report.requests_per_second,
            text::size(report.bytes_per_second as u64),
        )?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
