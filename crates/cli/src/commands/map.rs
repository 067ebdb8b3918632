//! `catena map`: which layer holds what of the guest's disk, and where in its files.
//!
//! Metadata alone is read, and every line is written as soon as it is known.

use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::{TargetArgs, warn_probed};
use crate::text;
use anstyle::{AnsiColor, Style};
use catena::detect::quoted;
use catena::{Chain, Error, ErrorKind, Extent, ExtentKind, Extents, GuestOffset, HostOffset};
use catena_engine::FileRole;
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;

const HEAD: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default();

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catena map vm.qcow2
  catena map --start-offset 1G --max-length 64M vm.qcow2
  catena map --output json vm.qcow2 | jq '.[] | select(.layer == 2)'

JSON has the fields of 'qemu-img map --output json', with layer, kind and file
beside them.")]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
    /// The guest address to start at; k, M, G and T are understood
    #[arg(short, long, value_name = "BYTES", value_parser = text::parse_size, default_value = "0")]
    start_offset: u64,
    /// How many bytes to look at; all where it is not given
    #[arg(short = 'l', long, value_name = "BYTES", value_parser = text::parse_size)]
    max_length: Option<u64>,
}

/// A line of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row<'a> {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    /// Where the bytes lie as they are, or the space kept for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    layer: u32,
    kind: Kind,
    /// The file that `offset` lies in, or that holds the bytes in another form.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Data,
    Zero,
    Compressed,
    Encrypted,
    Unallocated,
    Corrupt,
}

/// The names of a layer's files.
struct Names {
    image: String,
    data: String,
}

/// Prints the map.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let chain = args.target.detect()?;
    if args.output == Output::Human {
        warn_probed(&chain);
    }
    let disk = chain.open(args.target.sharing())?.for_walking();
    let names = names(&chain);
    let end = args
        .max_length
        .map_or(u64::MAX, |length| args.start_offset.saturating_add(length));
    let extents = Extents::within(&disk, GuestOffset(args.start_offset), GuestOffset(end));
    let mut out = output::stdout();
    let mut printer = Printer::new(
        args.output,
        catena::Disk::size(&disk),
        chain.layers.len(),
        &mut out,
    )?;
    let mut pending: Option<Row<'_>> = None;
    let mut damaged = None;
    for extent in extents {
        let extent = extent?;
        if let ExtentKind::Corrupt { entry } = extent.kind {
            damaged.get_or_insert((extent, entry));
        }
        let row = Row::new(&extent, &names);
        match &mut pending {
            Some(last) if last.continues(&row) => last.length += row.length,
            _ => {
                if let Some(done) = pending.replace(row) {
                    printer.row(&done, &mut out)?;
                }
            }
        }
    }
    if let Some(done) = pending {
        printer.row(&done, &mut out)?;
    }
    printer.end(&mut out)?;
    out.flush()?;
    match damaged {
        None => Ok(ExitCode::SUCCESS),
        Some((extent, entry)) => Err(damage(&extent, entry, &names).into()),
    }
}

fn damage(extent: &Extent, entry: HostOffset, names: &[Names]) -> Error {
    let message = format!("the mapping of guest offset {} is damaged", extent.start);
    let error = Error::new(ErrorKind::Corrupt, message).at(entry.0);
    match layer_of(names, extent.layer) {
        Some(names) => error.with_path(&names.image).with_hint(format!(
            "'qemu-img check {}' tells all that is damaged",
            quoted(&names.image)
        )),
        None => error,
    }
}

fn names(chain: &Chain) -> Vec<Names> {
    let name = |layer: &catena::Layer| Names {
        image: layer.name(),
        data: layer
            .data_file
            .as_ref()
            .and_then(|file| file.source.as_ref())
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    chain.layers.iter().map(name).collect()
}

fn layer_of(names: &[Names], layer: u32) -> Option<&Names> {
    names.get(usize::try_from(layer).ok()?)
}

impl<'a> Row<'a> {
    fn new(extent: &Extent, names: &'a [Names]) -> Self {
        let of = layer_of(names, extent.layer);
        let image = of.map(|names| names.image.as_str());
        let (kind, offset, file) = match extent.kind {
            ExtentKind::Data { file, offset } => {
                let name = match file {
                    FileRole::Image => image,
                    FileRole::Data => of.map(|names| names.data.as_str()),
                };
                (Kind::Data, Some(offset.0), name)
            }
            ExtentKind::Zero { offset } => (Kind::Zero, offset.map(|offset| offset.0), image),
            // No bytes lie there as the guest sees them, so qemu-img gives no offset and neither do we.
            ExtentKind::Compressed { .. } => (Kind::Compressed, None, image),
            ExtentKind::Encrypted { .. } => (Kind::Encrypted, None, image),
            ExtentKind::Corrupt { .. } => (Kind::Corrupt, None, image),
            _ => (Kind::Unallocated, None, None),
        };
        Self {
            start: extent.start.0,
            length: extent.len,
            depth: extent.layer,
            present: kind != Kind::Unallocated,
            zero: matches!(kind, Kind::Zero | Kind::Unallocated),
            data: matches!(kind, Kind::Data | Kind::Compressed | Kind::Encrypted),
            compressed: kind == Kind::Compressed,
            offset,
            layer: extent.layer,
            kind,
            file,
        }
    }

    /// Whether the other one, which follows, tells the same and goes on in the same place.
    fn continues(&self, next: &Self) -> bool {
        self.kind == next.kind
            && self.layer == next.layer
            && self.file == next.file
            && match (self.offset, next.offset) {
                (None, None) => true,
                (Some(offset), Some(next)) => offset.checked_add(self.length) == Some(next),
                _ => false,
            }
    }
}

/// Writes rows as they come.
struct Printer {
    form: Output,
    /// Columns of a guest address, of a length, and of a layer's number.
    address: usize,
    length: usize,
    layer: usize,
    first: bool,
}

impl Printer {
    fn new(form: Output, size: u64, layers: usize, out: &mut impl Write) -> io::Result<Self> {
        let address = format!("{size:#x}").len().max("start".len());
        // No length is longer than the whole in bytes.
        let length = format!("{size} B").len().max(9);
        let layer = layers.saturating_sub(1).to_string().len().max("layer".len());
        match form {
            Output::Human => writeln!(
                out,
                "{HEAD}{:>address$}  {:>length$}  {:>layer$}  {:<11}  {:>14}  file{HEAD:#}",
                "start", "length", "layer", "kind", "offset in file"
            )?,
            Output::Json => write!(out, "[")?,
        }
        Ok(Self {
            form,
            address,
            length,
            layer,
            first: true,
        })
    }

    fn row(&mut self, row: &Row<'_>, out: &mut impl Write) -> io::Result<()> {
        let first = std::mem::take(&mut self.first);
        if self.form == Output::Json {
            write!(out, "{}", if first { "" } else { ",\n" })?;
            return Ok(serde_json::to_writer(out, row)?);
        }
        let (address, length, layer) = (self.address, self.length, self.layer);
        let style = match row.kind {
            Kind::Data | Kind::Compressed | Kind::Encrypted => Style::new(),
            Kind::Zero | Kind::Unallocated => QUIET,
            Kind::Corrupt => BAD,
        };
        let kind = match row.kind {
            Kind::Data => "data",
            Kind::Zero => "zero",
            Kind::Compressed => "compressed",
            Kind::Encrypted => "encrypted",
            Kind::Unallocated => "unallocated",
            Kind::Corrupt => "corrupt",
        };
        let offset = row.offset.map_or("-".to_owned(), |offset| format!("{offset:#x}"));
        writeln!(
            out,
            "{style}{:>#address$x}  {:>length$}  {:>layer$}  {kind:<11}  {offset:>14}  {}{style:#}",
            row.start,
            text::exact_size(row.length),
            row.layer,
            row.file.map_or("-".to_owned(), text::printable),
        )
    }

    fn end(&self, out: &mut impl Write) -> io::Result<()> {
        match self.form {
            Output::Human => Ok(()),
            Output::Json => writeln!(out, "]"),
        }
    }
}
