//! `qemu-img compare`: whether two images show their guests the same.

use super::getopt::Takes::{Argument, Nothing};
use super::getopt::{Key, Options, long, word};
use super::image_args::ImageArgs;
use super::map::{Entry, Map};
use super::open::{self, Purpose};
use super::options::{Cache, cache_mode};
use super::program::{self, Failure, Program, Result, usage};
use super::progress::Progress;
use catena::GuestOffset;
use catena::ops::compare::{Outcome, compare_views};
use catena::ops::view::View;
use std::sync::Arc;

pub const OPTIONS: Options = Options {
    short: "hf:F:T:pqsU",
    long: &[
        long("help", 'h', Nothing),
        long("quiet", 'q', Nothing),
        word("object", Argument),
        long("cache", 'T', Argument),
        word("image-opts", Nothing),
        long("a-format", 'f', Argument),
        long("left-format", 'f', Argument),
        long("b-format", 'F', Argument),
        long("right-format", 'F', Argument),
        long("force-share", 'U', Nothing),
        long("strict", 's', Nothing),
        long("progress", 'p', Nothing),
    ],
};

/// The status for what is no answer.
const TROUBLE: u8 = 2;

/// Runs the subcommand.
pub fn run(program: &Program, words: Vec<String>) -> Result<u8> {
    run_inner(program, words).map_err(|failure| match failure {
        Failure::Error(text, 1) => Failure::Error(text, TROUBLE),
        other => other,
    })
}

fn run_inner(program: &Program, words: Vec<String>) -> Result<u8> {
    let (mut format_b, mut cache) = (None, "writeback".to_owned());
    let (mut progress, mut quiet, mut strict) = (false, false, false);
    let mut image = ImageArgs::default();
    let others = program::options(OPTIONS, words, |key, value| {
        match key {
            Key::Letter('F') => format_b = Some(value),
            Key::Letter('T') => cache = value,
            Key::Letter('p') => progress = true,
            Key::Letter('q') => quiet = true,
            Key::Letter('s') => strict = true,
            _ => image.take(key, value)?,
        }
        Ok(())
    })?;
    let Some(others) = others else {
        return super::help::print(program);
    };
    let [a, b] = others.as_slice() else {
        return Err(usage("Expecting two image file names"));
    };
    image.check()?;
    let progress = Progress::new(progress && !quiet);
    cache_mode(&cache, Cache::Source)?;
    let opened_a = image.open(program, a, Purpose::default())?;
    image.format = format_b;
    let opened_b = image.open(program, b, Purpose::default())?;
    let view = |opened: &open::Opened| -> Result<View> {
        Ok(View::of_chain(Arc::new(opened.disk()?), &opened.chain.layers))
    };
    let (view_a, view_b) = (view(&opened_a)?, view(&opened_b)?);
    let sizes = |opened: &open::Opened| {
        Ok(opened
            .top()?
            .virtual_size()
            .unwrap_or_default()
            .next_multiple_of(512))
    };
    let (size_a, size_b): (u64, u64) = (sizes(&opened_a)?, sizes(&opened_b)?);
    let status = match strict && size_a == size_b {
        true => first_status_mismatch(&Map::new(&opened_a)?, &Map::new(&opened_b)?)?,
        false => None,
    };
    let outcome = if strict && size_a != size_b {
        Outcome::Size {
            sizes: (size_a, size_b),
        }
    } else {
        let content = compare_views(&view_a, &view_b, false, &progress).map_err(program::error)?;
        match (content, status) {
            // What comes first is told.
            (Outcome::Content { at, .. }, Some(status)) if at.0 < status => content,
            (_, Some(status)) => Outcome::Status {
                at: GuestOffset(status),
            },
            (content, None) => content,
        }
    };
    let say = |text: &str| {
        if !quiet {
            program::print(&format!("{text}\n"));
        }
    };
    let mismatch = |sizes: Option<(u64, u64)>| {
        if sizes.is_some() {
            say("Warning: Image size mismatch!");
        }
    };
    let status = match outcome {
        Outcome::Same { sizes } => {
            if sizes.is_some() {
                mismatch(sizes);
            }
            progress.finish_quietly();
            say("Images are identical.");
            0
        }
        Outcome::Size { .. } => {
            say("Strict mode: Image size mismatch!");
            1
        }
        Outcome::Content { at, sizes } => {
            if let Some((a, b)) = sizes
                && at.0 >= a.min(b)
            {
                mismatch(sizes);
            }
            // It is found by sectors.
            say(&format!("Content mismatch at offset {}!", at.0 - at.0 % 512));
            1
        }
        Outcome::Status { at } => {
            say(&format!("Strict mode: Offset {} block status mismatch!", at.0));
            1
        }
    };
    progress.end_line();
    Ok(status)
}

/// The first address of which two maps say something else.
fn first_status_mismatch(a: &Map, b: &Map) -> Result<Option<u64>> {
    let entries = |map: &Map| -> Result<Vec<Entry>> {
        let mut all: Vec<Entry> = Vec::new();
        map.walk(0, map.size, |next| {
            match all.last_mut() {
                Some(last) if last.status() == next.status() => last.length += next.length,
                _ => all.push(next),
            }
            Ok(())
        })?;
        Ok(all)
    };
    let (a, b) = (entries(a)?, entries(b)?);
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
        if l.status() != r.status() {
            return Ok(Some(l.start.max(r.start)));
        }
        let (l_end, r_end) = (l.start + l.length, r.start + r.length);
        if l_end <= r_end {
            left.next();
        }
        if r_end <= l_end {
            right.next();
        }
    }
    Ok(None)
}
