//! `qemu-img commit`: writes what an image holds into one below it.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::open::{self, Opened, Purpose};
use super::options::{Cache, cache_mode};
use super::percent::Percent;
use super::program::{self, Program, Result, error, usage};
use super::{errno, nodes, size};
use catena::ops::commit::{self, After};
use catena::ops::{LayerChoice, Moving, OtherChildren};
use catena::{Policy, Start};

const OPTIONS: Options = Options {
    short: "hf:t:b:dpqr:",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        long("progress", 'p', Nothing),
        long("format", 'f', Argument),
        word("image-opts", Nothing),
        long("cache", 't', Argument),
        long("drop", 'd', Nothing),
        long("base", 'b', Argument),
        long("rate", 'r', Argument),
        word("object", Argument),
    ],
};

#[derive(Debug, Default)]
struct Request {
    image: ImageArgs,
    cache: Option<String>,
    base: Option<String>,
    /// The image is not emptied.
    drop: bool,
    progress: bool,
    quiet: bool,
    /// Bytes a second at most.
    rate: u64,
}

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    let mut request = Request::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('t') => request.cache = Some(value),
            Key::Letter('b') => {
                request.base = Some(value);
                request.drop = true;
            }
            Key::Letter('d') => request.drop = true,
            Key::Letter('p') => request.progress = true,
            Key::Letter('q') => request.quiet = true,
            Key::Letter('r') => {
                request.rate = size::argument("rate limit", &value, 0, size::MAX).map_err(error)?;
            }
            _ => request.image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let [name] = others.as_slice() else {
        return Err(usage("Expecting one image file name"));
    };
    if let Some(mode) = &request.cache {
        cache_mode(mode, Cache::Target)?;
    }
    request.image.check()?;
    let opened = request.image.open(
        program,
        name,
        Purpose {
            write: true,
            ..Purpose::default()
        },
    )?;
    let percent = Percent::begin(request.progress && !request.quiet);
    let done = request.perform(opened, name, &percent);
    drop(percent);
    done?;
    if !request.quiet {
        program::print("Image committed.\n");
    }
    Ok(0)
}

impl Request {
    fn perform(&self, opened: Opened, name: &str, percent: &Percent) -> Result<()> {
        let base = self.find_base(&opened, name)?;
        opened.is_by_its_name()?;
        let layer = opened.top()?;
        let request = commit::Request {
            start: Start {
                source: layer.source.clone(),
                format: Some(layer.format),
            },
            top: LayerChoice::Index(0),
            base: Some(LayerChoice::Index(base)),
            after: if self.drop { After::Keep } else { After::Empty },
            children: OtherChildren {
                forced: true,
                ..OtherChildren::default()
            },
            moving: Moving {
                rate: Some(self.rate).filter(|rate| *rate > 0),
                ..Moving::default()
            },
        };
        let names = opened.names.clone();
        let base_file = opened
            .chain
            .layers
            .get(base)
            .and_then(|layer| Some((layer.path()?.to_owned(), layer.format)));
        // From here on the plan holds the locks.
        drop(opened);
        if let Some((path, format)) = base_file {
            let shown = names.get(base).map(String::as_str).unwrap_or_default();
            check_base(&path, format, shown)?;
        }
        let failed = |why: catena::Error| error(format!("Block job failed: {}", errno::word(&why)));
        commit::plan(&request, &Policy::qemu())
            .and_then(|plan| plan.execute(percent))
            .map_err(failed)?;
        percent.complete();
        Ok(())
    }

    /// The number of the layer that is written.
    fn find_base(&self, opened: &Opened, name: &str) -> Result<usize> {
        let Some(wanted) = &self.base else {
            return match opened.chain.layers.len() {
                0 | 1 => Err(error("Image does not have a backing file")),
                _ => Ok(1),
            };
        };
        // A name is meant as the image above would record it.
        let found = (1..opened.chain.layers.len()).find(|index| {
            let shown = |index: usize| opened.names.get(index).map(String::as_str).unwrap_or_default();
            let meant = nodes::beside(shown(index - 1), wanted);
            let file = |name: &str| std::path::Path::new(name).canonicalize().ok();
            shown(*index) == meant
                || (wanted.starts_with("json:") && shown(*index) == wanted)
                || file(&meant).is_some_and(|meant| Some(meant) == file(shown(*index)))
        });
        found.ok_or_else(|| {
            error(format!(
                "Did not find '{wanted}' in the backing chain of '{name}'"
            ))
        })
    }
}

/// Whether the base can be opened and locked to be written, as QEMU would say it.
fn check_base(path: &std::path::Path, format: catena::Format, name: &str) -> Result<()> {
    let text = path.display().to_string();
    let file = open::open_file(&text, None, true).map_err(error)?;
    open::lock(&file, name, format, false, true, 0).map_err(error)
}
