//! `catena reference`: what a string means that an overlay records, or could record, for its backing image.
//!
//! Nothing is opened. The meaning goes to standard output, the reason for a refusal or a loss to standard error.

use crate::text;
use catena::reference::{
    Location, Lost, LostKind, Source, Transport, differs_from_qemu, without_credentials,
};
use catena::{Reading, Reference};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// Exit status where the meaning is printed, but does not say all of where the bytes come from.
const LOSSY: u8 = 3;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Exit status:
  0  understood
  1  refused; the reason, in libvirt's words where libvirt refuses it too, is
     on standard error. With --output xml, what libvirt refuses is refused
     whoever reads it: there is no element for it
  2  the command line is wrong
  3  accepted, but the <source> element cannot carry all of it; the loss is on
     standard error

Status 3 is for inline credentials, at which libvirt ends the chain; with
--output xml, for names with control characters and those that are not UTF-8;
and, unless --as libvirt, for anything that changes where the bytes come from:
an offset in a wrong place, a dropped query, an overriding 'backing', a slice
without an end. Settings that name no other bytes (caching, TLS, the user
name) do not count.

Nothing is opened: a name is a name, whether or not there is such a file.")]
pub struct Args {
    /// The string: a path, a URI, json:…, nbd:…, rbd:…, fat:…, file:…
    #[arg(allow_hyphen_values = true)]
    string: OsString,
    /// The image that records it: relative names are resolved beside it. A path or itself a reference
    #[arg(long, value_name = "PATH")]
    overlay: Option<OsString>,
    /// What to print: lines to read, JSON, or libvirt's <source> element
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// By whose rules to read it: libvirt's are those of 11.3, with its gaps
    #[arg(long = "as", value_enum, default_value_t, value_name = "READER")]
    reader: Reader,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
    Xml,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Reader {
    #[default]
    Catena,
    Libvirt,
}

impl From<Reader> for Reading {
    fn from(reader: Reader) -> Self {
        match reader {
            Reader::Catena => Self::Catena,
            Reader::Libvirt => Self::Libvirt,
        }
    }
}

/// Prints what the string means.
pub fn run(args: &Args) -> ExitCode {
    let reading = Reading::from(args.reader);
    let overlay = match args
        .overlay
        .as_ref()
        .map(|name| understand(name, Reading::Catena))
    {
        None => None,
        Some(Ok(overlay)) => Some(overlay.unresolved()),
        Some(Err(reason)) => return refused(&format!("cannot understand the overlay: {reason}")),
    };
    let reference = match understand(&args.string, reading) {
        Ok(reference) => reference,
        Err(reason) => return refused(&reason),
    };
    if args.output == Output::Xml
        && let Err(reason) = understand(&args.string, Reading::Libvirt)
    {
        return refused(&reason);
    }
    let source = match &overlay {
        Some(overlay) => reference.resolve(overlay),
        None => reference.unresolved(),
    };
    let text = args.string.to_string_lossy();
    let differs = || differs_from_qemu(&text, overlay.as_ref().unwrap_or(&Source::file("overlay")));
    let shown = match args.output {
        Output::Xml => source.to_libvirt_xml(),
        Output::Json => {
            let value = as_json(&text, args.reader, &reference, &source, differs().as_deref());
            format!("{value:#}\n")
        }
        Output::Text => as_text(&reference, &source, differs().as_deref()),
    };
    if let Err(error) = std::io::stdout().lock().write_all(shown.as_bytes()) {
        return refused(&format!("cannot write the answer: {error}"));
    }
    let mut losses: Vec<String> = reference
        .lost()
        .iter()
        .filter(|lost| match lost.kind {
            LostKind::Credentials => true,
            LostKind::Location => reading == Reading::Catena,
            _ => false,
        })
        .map(Lost::to_string)
        .collect();
    if reading == Reading::Catena && source.slice.is_some_and(|slice| slice.size.is_none()) {
        losses.push("the slice reaches to the end of the object, which the element cannot say".to_owned());
    }
    if args.output == Output::Xml && !source.fits_libvirt_xml() {
        losses.push(
            "a name holds control characters or is not UTF-8, and the element shows it without them"
                .to_owned(),
        );
    }
    for loss in &losses {
        complain(loss);
    }
    if losses.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(LOSSY)
    }
}

fn understand(text: &OsString, reading: Reading) -> Result<Reference, String> {
    Reference::parse_bytes(text.as_bytes(), reading).map_err(|error| error.to_string())
}

/// Says something on standard error; when that is gone too, there is nobody to tell.
fn complain(reason: &str) {
    let _ = writeln!(std::io::stderr().lock(), "catena: {}", text::printable(reason));
}

fn refused(reason: &str) -> ExitCode {
    complain(reason);
    ExitCode::FAILURE
}

fn as_json(
    text: &str,
    reader: Reader,
    reference: &Reference,
    source: &Source,
    differs: Option<&str>,
) -> Value {
    let lost = reference
        .lost()
        .iter()
        .map(|lost| json!({"kind": lost.kind.as_str(), "key": lost.key, "why": lost.why}));
    json!({
        "reference": without_credentials(text),
        "reading": match reader {
            Reader::Catena => "catena",
            Reader::Libvirt => "libvirt",
        },
        "relative": reference.is_relative(),
        "source": source,
        "recorded": source.to_recorded().ok(),
        "lost": Value::from_iter(lost),
        "differs_from_qemu": differs,
    })
}

/// Aligned lines: what it is, where it is, what is lost, and where libvirt and QEMU part.
fn as_text(reference: &Reference, source: &Source, differs: Option<&str>) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    let kind = match &source.location {
        Location::File(_) => "file".to_owned(),
        Location::Block(_) => "block device".to_owned(),
        Location::Dir(_) => "folder shown as a FAT disk".to_owned(),
        Location::Network(network) => format!("{} object", network.protocol),
        Location::Nvme(_) => "NVMe namespace".to_owned(),
        _ => source.type_name().to_owned(),
    };
    lines.push(("kind", kind));
    if let Some(path) = source.path() {
        lines.push(("path", path.display().to_string()));
    }
    if let Location::Nvme(nvme) = &source.location {
        lines.push(("device", nvme.device()));
        lines.push(("namespace", nvme.namespace.to_string()));
    }
    if let Some(network) = source.network() {
        if let Some(name) = network.full_name() {
            lines.push(("name", name));
        }
        for host in &network.hosts {
            let name = host.name.as_deref().unwrap_or_default();
            lines.push((
                "host",
                match (host.transport, host.port) {
                    (Transport::Unix, _) => format!("unix {}", host.socket.as_deref().unwrap_or_default()),
                    (Transport::Tcp, Some(port)) => format!("{name} port {port}"),
                    (Transport::Tcp, None) => name.to_owned(),
                    (other, port) => format!("{name} port {} by {other}", port.unwrap_or_default()),
                },
            ));
        }
        for (label, value) in [
            ("query", &network.query),
            ("snapshot", &network.snapshot),
            ("config", &network.config_file),
            ("user", &network.ssh.user),
            ("user", &network.nfs_user),
            ("group", &network.nfs_group),
        ] {
            if let Some(value) = value {
                lines.push((label, value.clone()));
            }
        }
    }
    if let Some(slice) = source.slice {
        let size = slice
            .size
            .map_or_else(|| "to the end".to_owned(), |size| format!("{size} bytes"));
        lines.push(("slice", format!("{size} from offset {}", slice.offset)));
    }
    if let Some(format) = source.format {
        lines.push(("format", format.to_string()));
    }
    if reference.is_relative() {
        lines.push(("relative", "to the folder of the overlay".to_owned()));
    }
    for lost in reference.lost() {
        lines.push(("lost", lost.why.clone()));
    }
    if let Some(differs) = differs {
        lines.push(("differs", differs.to_owned()));
    }
    let width = lines
        .iter()
        .map(|(label, _)| label.len())
        .max()
        .unwrap_or_default();
    lines.iter().fold(String::new(), |mut shown, (label, value)| {
        // A String takes whatever is written to it.
        let value = text::printable(value);
        let _ = writeln!(shown, "{label:width$}  {value}");
        shown
    })
}
