//! `qemu-img convert`: what images show, as another image.

mod bitmaps;
mod said;
mod steps;
pub mod watched;

use super::create::Vetted;
use super::create_options::{self, Chosen, Use};
use super::open::{self, Named, Opened, Purpose};
use super::options::Cache;
use super::percent::Percent;
use super::program::{self, Failure, Program, Result, error};
use super::rebase::check_cache;
use super::target::Target as OpenTarget;
use super::{errno, help, keyval};
use catena::ops::convert::{self, Request, Shared, Target};
use catena::ops::{Concatenated, Input, Moving, Observer, Offload, copy};
use catena::{Error, Layer, Policy};
use catena_engine::{Disk, GuestOffset};
use said::{OPTIONS, Said};
use std::sync::Arc;
use watched::Failures;

const SECTOR: u64 = 512;

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut said = Said::default();
    let others = program::options(OPTIONS, words, |key, value| said.take(program, key, value))?;
    let Some(others) = others else {
        return help::print(program);
    };
    said.check()?;
    let (target, sources) = match others.as_slice() {
        [sources @ .., target] if !sources.is_empty() => (Some(target.as_str()), sources),
        _ => (None, [].as_slice()),
    };
    if let Some(list) = &said.options
        && keyval::asks_for_help(list)
    {
        return create_options::print_help(target, said.target_format().unwrap_or("raw"));
    }
    let Some(target) = target else {
        return Err(error("Must specify image file name"));
    };
    check_cache(said.source_cache.as_deref(), Cache::Source)?;
    let percent = Percent::begin(said.progress && !said.quiet);
    let conversion = Conversion {
        program,
        said: &said,
        sources,
        target,
        percent: &percent,
    };
    match conversion.run() {
        Ok(status) => Ok(status),
        // The line that tells how far it got ends behind the message.
        Err(failure) => Err(Failure::Silent(program.report(&failure))),
    }
}

/// What is done.
struct Conversion<'a> {
    program: &'a Program,
    said: &'a Said,
    sources: &'a [String],
    target: &'a str,
    percent: &'a Percent,
}

impl Conversion<'_> {
    fn run(&self) -> Result<u8> {
        let said = self.said;
        let sources = self.open_sources()?;
        let source = self.source(&sources)?;
        let size = source.size().next_multiple_of(SECTOR);
        let new = match said.no_create {
            true => None,
            false => Some(self.new_image(size)?),
        };
        let backed = match &new {
            Some(new) => new.chosen.get("backing_file").is_some(),
            None => said.backing.is_some(),
        };
        if sources.len() > 1 && backed {
            return Err(error(
                "Having a backing file for the target makes no sense when concatenating multiple input images",
            ));
        }
        if let Some(new) = &new
            && backed
            && new.chosen.get("backing_fmt").is_none()
        {
            return Err(error("Use of backing file requires explicit backing format"));
        }
        if said.compressed
            && let Some(new) = &new
        {
            check_compression(new)?;
        }
        if said.bitmaps {
            bitmaps::check(&sources, said.skip_broken_bitmaps)?;
        }
        if let Some(new) = &new {
            self.create(new)?;
        }
        // The target is there by then, as in QEMU.
        check_cache(said.cache.as_deref(), Cache::Target)?;
        if said.target_is_zero && backed {
            // Said, and yet no failure: so it is in QEMU.
            return Err(Failure::Error(
                "Cannot use --target-is-zero when the destination image has a backing file".to_owned(),
                0,
            ));
        }
        let opened = self.open_target()?;
        if said.bitmaps && !bitmaps::are_possible(&opened) {
            return Err(error(format!(
                "Format driver '{}' does not support bitmaps",
                opened.driver()
            )));
        }
        if said.compressed && opened.driver() != "qcow2" {
            return Err(error("Compression not supported for this file format"));
        }
        let target = if self.is_synced() {
            OpenTarget::open(&opened)?
        } else {
            OpenTarget::open_unsynced(&opened)?
        };
        if new.is_none() && target.disk.size() < size {
            return Err(error("output file is smaller than input file"));
        }
        self.copy(source, &sources, &target, backed)?;
        let copied = match said.bitmaps {
            true => bitmaps::copy(self.program, &sources, &target),
            false => Ok(()),
        };
        target
            .finish()
            .map_err(|failed| error(format!("error while writing at byte 0: {}", errno::word(&failed))))?;
        copied?;
        self.percent.complete();
        Ok(0)
    }

    /// Whether the target is durable when it is done: what can be made again need not be, as QEMU has it unless told otherwise.
    fn is_synced(&self) -> bool {
        !matches!(self.said.cache.as_deref(), None | Some("unsafe"))
    }

    fn open_sources(&self) -> Result<Vec<Opened>> {
        let open = |word: &String| self.said.image.open(self.program, word, Purpose::default());
        self.sources.iter().map(open).collect()
    }

    /// What is read.
    fn source(&self, sources: &[Opened]) -> Result<Arc<dyn Disk>> {
        let no_snapshot = |text: String| error(format!("Failed to load snapshot: {text}"));
        match (sources, &self.said.snapshot) {
            ([one], Some(snapshot)) => Ok(Arc::new(one.snapshot(snapshot).map_err(no_snapshot)?)),
            (_, Some(_)) => Err(error("No support for concatenating multiple snapshot")),
            ([one], None) => Ok(Arc::new(one.disk()?)),
            (several, None) => {
                let disks = several
                    .iter()
                    .map(|one| Ok(Arc::new(one.disk()?) as Arc<dyn Disk>));
                Ok(Arc::new(Concatenated::new(disks.collect::<Result<Vec<_>>>()?)))
            }
        }
    }

    /// The options of the target, with the size that it gets.
    fn new_image(&self, size: u64) -> Result<Vetted> {
        let format = self.said.target_format().unwrap_or("raw");
        create_options::known(format).map_err(error)?;
        create_options::check_protocol(self.target).map_err(error)?;
        create_options::creatable(format).map_err(error)?;
        let mut chosen = Chosen::of(format, Use::Create);
        if let Some(list) = &self.said.options {
            chosen.parse(list).map_err(error)?;
        }
        chosen.set("size", size.to_string()).map_err(error)?;
        for (key, value, what) in [
            ("backing_file", &self.said.backing, "Backing file"),
            ("backing_fmt", &self.said.backing_format, "Backing file format"),
        ] {
            let Some(value) = value else { continue };
            if !chosen.has(key) {
                return Err(error(format!("{what} not supported for file format '{format}'")));
            }
            chosen.set(key, value.clone()).map_err(error)?;
        }
        Ok(Vetted::of(self.target, format, chosen))
    }

    fn create(&self, new: &Vetted) -> Result<()> {
        let format = self.said.target_format().unwrap_or("raw");
        let made = if self.is_synced() {
            new.make()
        } else {
            new.make_unsynced()
        };
        made.map_err(|text| {
            error(format!(
                "{}: error while converting {format}: {text}",
                self.target
            ))
        })
    }

    fn open_target(&self) -> Result<Opened> {
        let named = Named {
            word: self.target,
            format: match self.said.target_image_opts {
                true => self.said.target_format.as_deref(),
                false => self.said.target_format(),
            },
            options: self.said.target_image_opts,
        };
        let purpose = Purpose {
            write: true,
            ..Purpose::default()
        };
        open::open(self.program, named, purpose)
    }

    fn copy(
        &self,
        source: Arc<dyn Disk>,
        sources: &[Opened],
        target: &OpenTarget,
        backed: bool,
    ) -> Result<()> {
        let said = self.said;
        let sparse = said.sparse.unwrap_or(copy::SPARSE);
        // What the source's own backing image holds is left to the target's; a source that has none answers for all.
        let shared = backed && sources.iter().any(|source| source.chain.layers.len() > 1);
        let cluster = target
            .qcow2
            .as_ref()
            .filter(|_| said.compressed)
            .map(|disk| disk.header().cluster_bits.size());
        let cutting = steps::Cutting {
            cluster,
            sources: pieces(sources),
            everything: sparse == 0,
            shared,
        };
        if said.progress && !said.quiet {
            let steps = steps::steps(&*source, &cutting).map_err(|failed| error(failed.full()))?;
            self.percent.expect(steps);
        }
        let failures = Arc::new(Failures::default());
        let request = Request {
            sources: vec![Input::Open {
                disk: Arc::new(watched::Source {
                    disk: source,
                    failures: Arc::clone(&failures),
                    salvage: said.salvage,
                }),
                name: String::new(),
            }],
            target: Target::Open {
                disk: Arc::new(watched::Target {
                    disk: Arc::clone(&target.disk),
                    failures: Arc::clone(&failures),
                }),
                name: self.target.to_owned(),
                is_new: (!said.no_create && !target.file().is_block_device()) || said.target_is_zero,
                backing_size: match said.no_create {
                    true => backed.then_some(u64::MAX),
                    false => target.backing_size.filter(|_| backed),
                },
                qcow2: target.qcow2.clone(),
            },
            shared: if shared {
                Shared::SourceBacking
            } else {
                Shared::Compared
            },
            moving: Moving {
                sparse,
                threads: usize::try_from(said.parallel).unwrap_or(copy::THREADS),
                any_order: said.any_order,
                rate: said.rate,
                offload: match said.sparse {
                    _ if said.offload => Offload::All,
                    // Where zeros are asked for as zeros, or as bytes, they are looked for, or written.
                    Some(_) => Offload::Never,
                    None => Offload::Share,
                },
                salvage: said.salvage,
            },
            compressed: said.compressed,
        };
        let watcher = Watcher { conversion: self };
        convert::plan(&request, &Policy::qemu())
            .and_then(|plan| plan.execute(&watcher))
            .map_err(|failed| error(failures.text(&failed)))
    }
}

/// Tells how far it is, and what could not be read.
struct Watcher<'a> {
    conversion: &'a Conversion<'a>,
}

impl Observer for Watcher<'_> {
    fn progress(&self, done: u64, total: u64) {
        self.conversion.percent.progress(done, total);
    }

    fn unreadable(&self, at: GuestOffset, why: &Error) {
        if !self.conversion.said.quiet {
            let word = errno::word(why);
            self.conversion
                .program
                .say(format!("warning: error while reading offset {}: {word}", at.0));
        }
    }
}

/// Where each source ends, and its clusters.
fn pieces(sources: &[Opened]) -> Vec<(u64, u64)> {
    let mut end = 0_u64;
    let piece = |source: &Opened| {
        let layer = source.chain.active();
        let size = layer.and_then(Layer::virtual_size).unwrap_or_default();
        end = end.saturating_add(size.next_multiple_of(SECTOR));
        let header = layer.and_then(|layer| layer.header.as_ref());
        (end, header.map_or(SECTOR, |header| header.cluster_bits.size()))
    };
    sources.iter().map(piece).collect()
}

/// Compressed clusters have the place they get, and are not encrypted.
fn check_compression(new: &Vetted) -> Result<()> {
    if new.format() != "qcow2" {
        return Err(error("Compression not supported for this file format"));
    }
    let chosen = &new.chosen;
    if chosen.switch("encryption") == Some(true) || chosen.given().any(|(key, _)| key == "encrypt.format") {
        return Err(error("Compression and encryption not supported at the same time"));
    }
    if chosen.get("preallocation").is_some_and(|mode| mode != "off") {
        return Err(error(
            "Compression and preallocation not supported at the same time",
        ));
    }
    Ok(())
}
