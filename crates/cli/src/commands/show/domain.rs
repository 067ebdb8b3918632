//! `catena show --domain`: the chains of a domain's disks, as XML and the images' headers make them together.

use super::model::Shown;
use super::{Args, dot, look, svg, tree};
use crate::domain::{self, Definition, Version};
use crate::error::CommandError;
use crate::output::{self, Drawing};
use crate::text::printable;
use catena::chain::End;
use catena::doctor::Code;
use catena::{Error, ErrorKind, Policy, Start, detect};
use catena_virt::{
    Below, Disk, Document, Volume, disagreements, snapshot_disagreements, volume_disagreements,
};
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// The disks of a document.
#[derive(Debug, Serialize)]
struct ShownDomain {
    domain: String,
    name: Option<String>,
    disks: Vec<ShownDisk>,
}

/// A disk.
#[derive(Debug, Serialize)]
struct ShownDisk {
    disk: String,
    device: &'static str,
    /// Layers that the XML gives, the active one among them.
    given: usize,
    /// Whether the XML says that nothing follows them.
    closed: bool,
    /// Why there is no chain to show.
    no_chain: Option<String>,
    chain: Option<Shown>,
    /// Of a domain that libvirt knows: what it runs with, starts with, and what is on the disk.
    views: Option<Views>,
}

/// The same chain as three see it.
#[derive(Debug, Serialize)]
struct Views {
    live: Option<Vec<Seen>>,
    inactive: Option<Vec<Seen>>,
    on_disk: Vec<Seen>,
    /// Whether the end is known on the disk.
    on_disk_ends: bool,
    differences: Vec<String>,
}

/// A layer in one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Seen {
    name: String,
    format: &'static str,
}

/// Shows them.
pub fn run(args: &Args, name: &str) -> Result<ExitCode, CommandError> {
    let policy = args.policy.load()?;
    let is_file = name == "-" || (args.connect.is_none() && Path::new(name).exists());
    let (current, inactive) = if is_file {
        (domain::read(Path::new(name))?, None)
    } else {
        let connect = args.connect.as_deref();
        let current = domain::ask(connect, name, Definition::Current)?;
        // A domain that is gone once it stops has no other definition.
        let inactive = domain::ask(connect, name, Definition::Inactive).ok();
        (current, inactive)
    };
    let document = match &inactive {
        Some(inactive) if !domain::runs(&current) => inactive,
        _ => &current,
    };
    let chosen: Vec<&Disk> = match &args.disk {
        None => document.disks.iter().collect(),
        Some(disk) => vec![document.disk(disk).ok_or_else(|| no_disk(disk, document))?],
    };
    let live = domain::runs(&current).then_some(&current);
    let mut disks: Vec<_> = document
        .volume
        .iter()
        .map(|volume| show_volume(args, volume, document, &policy))
        .collect();
    for disk in chosen {
        let mut shown = show(args, disk, document, &policy);
        if !is_file {
            let of = |document: &Document| {
                disk.target
                    .as_deref()
                    .and_then(|target| document.disk(target).cloned())
            };
            let (live, inactive) = (live.and_then(of), inactive.as_ref().and_then(of));
            shown.views = Some(Views::of(live.as_ref(), inactive.as_ref(), disk, &policy));
        }
        disks.push(shown);
    }
    let shown = ShownDomain {
        domain: name.to_owned(),
        name: document.name.clone(),
        disks,
    };
    let mut out = output::stdout();
    match args.output {
        Drawing::Human => draw(args, &shown, &mut out)?,
        Drawing::Json => output::json(&shown, &mut out)?,
        Drawing::Dot | Drawing::Svg => match shown.disks.as_slice() {
            [
                ShownDisk {
                    chain: Some(chain), ..
                },
            ] if args.output == Drawing::Dot => dot::draw(chain, &mut out)?,
            [
                ShownDisk {
                    chain: Some(chain), ..
                },
            ] => svg::draw(chain, &mut out)?,
            [
                ShownDisk {
                    no_chain: Some(why), ..
                },
            ] => {
                return Err(Error::new(ErrorKind::Unsupported, why.clone()).into());
            }
            _ => {
                return Err(Error::new(ErrorKind::Conflict, "a picture shows one disk")
                    .with_hint(format!("choose it with --disk; there are {}", names(document)))
                    .into());
            }
        },
    }
    out.flush()?;
    let wrong = shown
        .disks
        .iter()
        .any(|disk| disk.chain.as_ref().is_some_and(Shown::is_wrong));
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn names(document: &Document) -> String {
    let names: Vec<_> = document.disks.iter().map(Disk::name).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The error for a disk that the document does not have.
pub fn no_disk(disk: &str, document: &Document) -> CommandError {
    Error::new(ErrorKind::NotFound, format!("disk '{disk}' not found in domain"))
        .with_hint(format!("its disks are {}", names(document)))
        .into()
}

/// The disk as libvirt 9.0 reads it: data files are unknown to it.
fn without_data_stores(disk: &Disk) -> Disk {
    let mut disk = disk.clone();
    for layer in &mut disk.layers {
        layer.data_store = None;
    }
    disk
}

fn show(args: &Args, disk: &Disk, document: &Document, policy: &Policy) -> ShownDisk {
    let libvirt = args.libvirt;
    let old = (libvirt == Version::V9).then(|| without_data_stores(disk));
    let disk = old.as_ref().unwrap_or(disk);
    let (chain, no_chain) = match disk.chain(policy) {
        Ok(chain) => {
            let from = Path::new(args.domain.as_deref().unwrap_or_default());
            let mut shown = Shown::of(&chain, policy, from, args.count);
            let mut findings = disagreements(disk, &chain, policy);
            if libvirt == Version::V9 {
                // What it cannot read, nobody need write for it.
                findings.retain(|finding| finding.code != Code::XmlDataStoreMissing);
            }
            let reused = snapshot_disagreements(document, document, policy)
                .into_iter()
                .filter(|(name, _)| disk.target.as_ref() == Some(name))
                .map(|(_, finding)| finding);
            shown.add_findings(findings.into_iter().chain(reused));
            (Some(shown), None)
        }
        Err(why) => (None, Some(why)),
    };
    ShownDisk {
        disk: disk.name().to_owned(),
        device: disk.device.as_str(),
        given: disk.layers.len(),
        closed: matches!(disk.below, Below::Closed(_)),
        no_chain,
        chain,
        views: None,
    }
}

/// A storage pool's volume, and where its document and the image disagree.
fn show_volume(args: &Args, volume: &Volume, document: &Document, policy: &Policy) -> ShownDisk {
    let (chain, no_chain) = match volume.chain(policy) {
        Ok(chain) => {
            let from = Path::new(args.domain.as_deref().unwrap_or_default());
            let mut shown = Shown::of(&chain, policy, from, args.count);
            shown.add_findings(volume_disagreements(volume, &chain, policy));
            (Some(shown), None)
        }
        Err(why) => (None, Some(why)),
    };
    ShownDisk {
        disk: document.name.clone().unwrap_or_default(),
        device: "volume",
        given: 1,
        closed: false,
        no_chain,
        chain,
        views: None,
    }
}

impl Views {
    fn of(live: Option<&Disk>, inactive: Option<&Disk>, disk: &Disk, policy: &Policy) -> Self {
        let given = |disk: &Disk| -> Vec<Seen> { disk.layers.iter().filter_map(Seen::given).collect() };
        let (live, inactive) = (live.map(given), inactive.map(given));
        // The headers alone, from the active layer down.
        let start = disk.active().and_then(|layer| {
            Some(Start {
                source: layer.source()?.clone(),
                format: Some(layer.real_format()),
            })
        });
        let (on_disk, on_disk_ends) = match start.map(|start| detect(&start, policy)) {
            Some(chain) => (
                chain.layers.iter().map(Seen::found).collect(),
                matches!(chain.end, End::Terminated),
            ),
            None => (Vec::new(), false),
        };
        let mut differences = Vec::new();
        if let Some(live) = &live {
            compare(
                "the running guest",
                live,
                &on_disk,
                on_disk_ends,
                &mut differences,
            );
        }
        if let Some(inactive) = &inactive {
            // What it does not give is looked for.
            compare("the definition", inactive, &on_disk, false, &mut differences);
        }
        Self {
            live,
            inactive,
            on_disk,
            on_disk_ends,
            differences,
        }
    }
}

/// Where a view is not what the headers say. One that must be whole may not end before they do.
fn compare(who: &str, view: &[Seen], on_disk: &[Seen], whole: bool, differences: &mut Vec<String>) {
    let count = if whole {
        view.len().max(on_disk.len())
    } else {
        view.len()
    };
    for number in 0..count {
        let say = |seen: Option<&Seen>| {
            seen.map_or_else(
                || "nothing".to_owned(),
                |seen| format!("'{}' ({})", seen.name, seen.format),
            )
        };
        let (has, is) = (view.get(number), on_disk.get(number));
        if has != is {
            differences.push(format!(
                "layer {number}: {who} has {}, on disk is {}",
                say(has),
                say(is)
            ));
        }
    }
}

impl Seen {
    fn given(layer: &catena_virt::Layer) -> Option<Self> {
        Some(Self {
            name: layer.source()?.to_string(),
            format: layer.real_format().as_str(),
        })
    }

    fn found(layer: &catena::Layer) -> Self {
        Self {
            name: layer.name(),
            format: layer.format.as_str(),
        }
    }
}

fn draw(args: &Args, shown: &ShownDomain, out: &mut impl Write) -> io::Result<()> {
    for (number, disk) in shown.disks.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        let given = match (disk.given, disk.closed) {
            (1, false) => String::new(),
            (1, true) => ", which the XML says is all".to_owned(),
            (given, false) => format!(", {given} layers given by the XML"),
            (given, true) => format!(", its {given} layers given by the XML"),
        };
        writeln!(out, "{} ({}){given}", printable(&disk.disk), disk.device)?;
        if let Some(why) = &disk.no_chain {
            writeln!(out, "no chain: {}", printable(why))?;
        }
        if let Some(chain) = &disk.chain {
            tree::draw(chain, look(args, chain.layers.len()), out)?;
        }
        if let Some(views) = &disk.views {
            draw_views(views, out)?;
        }
    }
    Ok(())
}

fn draw_views(views: &Views, out: &mut impl Write) -> io::Result<()> {
    let mut write = |title: &str, view: Option<&[Seen]>, tail: &str| -> io::Result<()> {
        let Some(view) = view else {
            return writeln!(out, "{title:9}-");
        };
        let layers: Vec<_> = view
            .iter()
            .map(|seen| format!("{} ({})", printable(&seen.name), seen.format))
            .collect();
        writeln!(out, "{title:9}{}{tail}", layers.join(" <- "))
    };
    write("live", views.live.as_deref(), "")?;
    write("inactive", views.inactive.as_deref(), "")?;
    write(
        "on disk",
        Some(&views.on_disk),
        if views.on_disk_ends { "" } else { " <- ?" },
    )?;
    for difference in &views.differences {
        writeln!(out, "differs  {}", printable(difference))?;
    }
    Ok(())
}
