//! `catena diff`: where two disks show their guests something else.

use crate::error::CommandError;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::target::{PolicyArgs, parse_format};
use crate::text;
use anstyle::Style;
use catena::open::Sharing;
use catena::ops::diff::{self, Content, Diff, Difference, Request};
use catena::ops::{Input, LayerChoice};
use catena::{Error, ErrorKind, Format, Policy, Start};
use catena_format::partitions::{Partition, Table};
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HEAD: Style = Style::new().bold();

/// Something differs.
const DIFFERENT: u8 = 1;
/// It could not be found out.
const FAILED: u8 = 2;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One image alone is held against the image that it stands on, or with
--snapshot against what its guest saw then. Where maps show that bytes come
from the same place, they are not read.

Exit status:
  0  guests see the same
  1  they do not, or one disk is longer
  2  it could not be found out

Examples:
  catena diff monday.qcow2 tuesday.qcow2
  catena diff vm.qcow2 --snapshot before-upgrade --partitions
  catena diff --allocated base.qcow2 vm.qcow2")]
pub struct Args {
    /// The disk as it was
    first: PathBuf,
    /// The disk as it is
    second: Option<PathBuf>,
    /// The first one's format; probed where it is not given
    #[arg(short, long, value_parser = parse_format)]
    format: Option<Format>,
    /// The second one's format; probed where it is not given
    #[arg(short = 'F', long, value_name = "FORMAT", value_parser = parse_format, requires = "second")]
    second_format: Option<Format>,
    /// The first disk as it was when this internal snapshot was taken, by id or name
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// The same of the second disk
    #[arg(long, value_name = "SNAPSHOT", requires = "second")]
    second_snapshot: Option<String>,
    /// Tell what was written, from maps alone: all that the layers of the second image's chain above
    /// the first image hold, or those of an image alone. The exit status is 0
    #[arg(long, conflicts_with_all = ["snapshot", "second_snapshot", "partitions", "unit"])]
    allocated: bool,
    /// Tell which partitions the differences are in
    #[arg(long, visible_alias = "files")]
    partitions: bool,
    /// Bytes that differ as a whole if one of them does: a power of two from 512 to 256k
    #[arg(long, value_name = "BYTES", value_parser = text::parse_size, default_value = "512")]
    unit: u64,
    /// Read images although another process may be writing them: what is read may be half written
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// Compares.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let done = if args.allocated {
        tell_held(args).map(|()| true)
    } else {
        tell_differences(args)
    };
    Ok(match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFERENT),
        Err(error) => error.report_as(FAILED),
    })
}

impl Args {
    fn sharing(&self) -> Sharing {
        if self.force_share {
            Sharing::Force
        } else {
            Sharing::Locked
        }
    }

    fn input(&self, path: &Path, format: Option<Format>, snapshot: Option<&String>) -> Input {
        Input::Chain {
            start: Start::at(path, format),
            snapshot: snapshot.cloned(),
            sharing: self.sharing(),
        }
    }

    fn request(&self, policy: &Policy) -> Result<Request, CommandError> {
        let named = || self.input(&self.first, self.format, self.snapshot.as_ref());
        let (first, second) = match &self.second {
            Some(second) => (
                named(),
                self.input(second, self.second_format, self.second_snapshot.as_ref()),
            ),
            None => {
                let first = match &self.snapshot {
                    Some(_) => named(),
                    None => diff::backing_of(&Start::at(&self.first, self.format), self.sharing(), policy)?,
                };
                (first, self.input(&self.first, self.format, None))
            }
        };
        Ok(Request {
            first,
            second,
            unit: self.unit,
        })
    }
}

fn tell_differences(args: &Args) -> Result<bool, CommandError> {
    let policy = args.policy.load()?;
    let request = args.request(&policy)?;
    let diff = Diff::open(&request, &policy)?;
    let sizes = diff.sizes();
    let table = if args.partitions { diff.partitions()? } else { None };
    // On a terminal, the table itself shows how far it is.
    let progress = if args.quiet || output::is_terminal() {
        Progress::quiet()
    } else {
        Progress::start("comparing")
    };
    let mut shares = Shares::new(table.as_ref());
    let mut listing = Listing::new(
        args,
        &request.first.name(),
        &request.second.name(),
        sizes.0.max(sizes.1),
    );
    let told = diff.run(&progress, &mut |found| {
        shares.add(found);
        listing.row(&Row::from(found))
    });
    drop(progress);
    listing.finish_rows(told)?;
    let same = listing.count == 0 && sizes.0 == sizes.1;
    let summary = Summary {
        bytes: listing.bytes,
        count: listing.count,
        same: Some(same),
        sizes: Some([sizes.0, sizes.1]),
        partitions: args.partitions.then(|| shares.shown()),
    };
    listing.end(&summary)?;
    Ok(same)
}

fn tell_held(args: &Args) -> Result<(), CommandError> {
    let policy = args.policy.load()?;
    let (start, below) = match &args.second {
        Some(second) => (
            Start::at(second, args.second_format),
            Some(LayerChoice::Path(args.first.clone())),
        ),
        None => (Start::at(&args.first, args.format), None),
    };
    let first = below.as_ref().map(|_| args.first.display().to_string());
    let mut listing = Listing::new(
        args,
        &first.unwrap_or_default(),
        &start.source.to_string(),
        u64::MAX >> 16,
    );
    let told = diff::held(&start, below.as_ref(), args.sharing(), &policy, &mut |held| {
        listing.row(&Row {
            start: held.start.0,
            length: held.len,
            from: None,
            to: word(held.content),
        })
    });
    listing.finish_rows(told.map(drop))?;
    let summary = Summary {
        bytes: listing.bytes,
        count: listing.count,
        same: None,
        sizes: None,
        partitions: None,
    };
    listing.end(&summary)
}

/// A line.
#[derive(Debug, Serialize)]
struct Row {
    start: u64,
    length: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'static str>,
    to: &'static str,
}

impl From<&Difference> for Row {
    fn from(found: &Difference) -> Self {
        Self {
            start: found.start.0,
            length: found.len,
            from: Some(word(found.first)),
            to: word(found.second),
        }
    }
}

fn word(content: Content) -> &'static str {
    match content {
        Content::Zero => "zero",
        Content::Data => "data",
    }
}

/// What stands behind the lines.
#[derive(Debug, Serialize)]
struct Summary {
    bytes: u64,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    same: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<ShownTable>,
}

#[derive(Debug, Serialize)]
struct ShownTable {
    scheme: Option<&'static str>,
    partitions: Vec<ShownPartition>,
    outside: u64,
}

#[derive(Debug, Serialize)]
struct ShownPartition {
    number: u32,
    #[serde(rename = "type")]
    id: String,
    purpose: Option<&'static str>,
    name: Option<String>,
    start: u64,
    length: u64,
    differs: u64,
}

/// How many of the bytes that differ are whose.
struct Shares<'a> {
    table: Option<&'a Table>,
    differs: Vec<u64>,
    /// What partitions cover, in order and without overlaps.
    covered: Vec<(u64, u64)>,
    outside: u64,
}

impl<'a> Shares<'a> {
    fn new(table: Option<&'a Table>) -> Self {
        let partitions = table.map(|table| table.partitions.as_slice()).unwrap_or_default();
        let mut ranges: Vec<_> = partitions.iter().map(range).collect();
        ranges.sort_unstable();
        let mut covered: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match covered.last_mut() {
                Some(last) if last.1 >= start => last.1 = last.1.max(end),
                _ => covered.push((start, end)),
            }
        }
        Self {
            table,
            differs: vec![0; partitions.len()],
            covered,
            outside: 0,
        }
    }

    fn add(&mut self, found: &Difference) {
        let (start, end) = (found.start.0, found.start.0.saturating_add(found.len));
        let common = |(from, to): (u64, u64)| end.min(to).saturating_sub(start.max(from));
        let partitions = self
            .table
            .map(|table| table.partitions.as_slice())
            .unwrap_or_default();
        for (differs, partition) in self.differs.iter_mut().zip(partitions) {
            *differs += common(range(partition));
        }
        let inside: u64 = self.covered.iter().map(|range| common(*range)).sum();
        self.outside += found.len.saturating_sub(inside);
    }

    fn shown(&self) -> ShownTable {
        let partitions = self
            .table
            .map(|table| table.partitions.as_slice())
            .unwrap_or_default();
        ShownTable {
            scheme: self.table.map(|table| table.scheme.as_str()),
            partitions: partitions
                .iter()
                .zip(&self.differs)
                .map(|(partition, differs)| ShownPartition {
                    number: partition.number,
                    id: partition.id.clone(),
                    purpose: partition.purpose,
                    name: partition.name.clone(),
                    start: partition.start,
                    length: partition.len,
                    differs: *differs,
                })
                .collect(),
            outside: self.outside,
        }
    }
}

fn range(partition: &Partition) -> (u64, u64) {
    (partition.start, partition.start.saturating_add(partition.len))
}

/// Writes lines as they come, from whichever thread finds them.
struct Listing {
    form: Output,
    quiet: bool,
    out: BufWriter<anstream::AutoStream<io::Stdout>>,
    failed: Option<io::Error>,
    /// What stands before the lines.
    head: String,
    /// Columns of an address.
    address: usize,
    allocated: bool,
    bytes: u64,
    count: u64,
}

impl Listing {
    fn new(args: &Args, first: &str, second: &str, size: u64) -> Self {
        let address = format!("{size:#x}").len().max("start".len());
        let head = match args.output {
            Output::Human => {
                let change = if args.allocated { "kind" } else { "change" };
                format!(
                    "{HEAD}{:>address$}  {:>12}  {change}{HEAD:#}\n",
                    "start", "length"
                )
            }
            Output::Json => {
                let first = (!first.is_empty()).then_some(first);
                let names = serde_json::json!({"first": first, "second": second}).to_string();
                format!("{}, \"extents\": [", names.trim_end_matches('}'))
            }
        };
        Self {
            form: args.output,
            quiet: args.quiet,
            out: BufWriter::new(anstream::stdout()),
            failed: None,
            head,
            address,
            allocated: args.allocated,
            bytes: 0,
            count: 0,
        }
    }

    fn row(&mut self, row: &Row) -> Result<(), Error> {
        self.bytes += row.length;
        self.count += 1;
        if self.quiet {
            return Ok(());
        }
        self.write(row).map_err(|error| {
            self.failed = Some(error);
            Error::new(ErrorKind::Cancelled, "the output cannot be written")
        })
    }

    fn write(&mut self, row: &Row) -> io::Result<()> {
        let head = std::mem::take(&mut self.head);
        let first = !head.is_empty();
        self.out.write_all(head.as_bytes())?;
        if self.form == Output::Json {
            self.out.write_all(if first { b"\n" } else { b",\n" })?;
            return Ok(serde_json::to_writer(&mut self.out, row)?);
        }
        let address = self.address;
        let change = match row.from {
            Some(from) => format!("{from} -> {}", row.to),
            None => row.to.to_owned(),
        };
        writeln!(
            self.out,
            "{:>#address$x}  {:>12}  {change}",
            row.start,
            text::exact_size(row.length)
        )
    }

    /// What came of the lines; that they could not be written is what is told first.
    fn finish_rows(&mut self, told: Result<(), Error>) -> Result<(), CommandError> {
        match self.failed.take() {
            Some(error) => Err(error.into()),
            None => Ok(told?),
        }
    }

    fn end(&mut self, summary: &Summary) -> Result<(), CommandError> {
        if self.quiet {
            return Ok(());
        }
        match self.form {
            Output::Json => {
                let head = std::mem::take(&mut self.head);
                let rest = serde_json::to_string(summary)?;
                let rest = rest.strip_prefix('{').unwrap_or_default();
                writeln!(self.out, "{head}\n], {rest}")?;
            }
            Output::Human => self.summarise(summary)?,
        }
        Ok(self.out.flush()?)
    }

    fn summarise(&mut self, summary: &Summary) -> io::Result<()> {
        let out = &mut self.out;
        let amount = text::exact_size(summary.bytes);
        let extents = text::count(summary.count, "extent");
        match summary.count {
            0 if self.allocated => writeln!(out, "nothing was written")?,
            0 => writeln!(out, "guests see the same")?,
            _ if self.allocated => writeln!(out, "{amount} in {extents}")?,
            _ => writeln!(out, "{amount} differ, in {extents}")?,
        }
        if let Some([first, second]) = summary.sizes.filter(|[first, second]| first != second) {
            writeln!(
                out,
                "the first disk has {}, the second {}",
                text::exact_size(first),
                text::exact_size(second)
            )?;
        }
        let Some(table) = &summary.partitions else {
            return Ok(());
        };
        if table.scheme.is_none() {
            return writeln!(out, "there is no partition table");
        }
        writeln!(
            out,
            "\n{HEAD}partition  {:>16}  {:>12}  {:>12}  type{HEAD:#}",
            "start", "length", "differs"
        )?;
        for partition in &table.partitions {
            let what = partition.purpose.unwrap_or(&partition.id);
            let name = partition
                .name
                .as_ref()
                .map(|name| format!(" '{}'", text::printable(name)));
            writeln!(
                out,
                "{:>9}  {:>#16x}  {:>12}  {:>12}  {what}{}",
                partition.number,
                partition.start,
                text::exact_size(partition.length),
                text::exact_size(partition.differs),
                name.unwrap_or_default()
            )?;
        }
        writeln!(out, "outside all of them: {}", text::exact_size(table.outside))
    }
}
