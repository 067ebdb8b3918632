//! What the verbs share that move bytes: how fast, and how sparse.

use crate::text;
use catena::ops::{Moving, copy};

/// Options of every verb that moves bytes.
#[derive(Debug, clap::Args)]
pub struct MovingArgs {
    /// How many requests are under way at once
    #[arg(long, value_name = "NUMBER", default_value_t = copy::THREADS, value_parser = parse_threads)]
    threads: usize,
    /// Write in any order, not in the order of the guest's disk: faster on some media
    #[arg(long)]
    any_order: bool,
    /// Most bytes a second; k, M, G are understood
    #[arg(long, value_name = "BYTES", value_parser = text::parse_size)]
    rate_limit: Option<u64>,
}

impl MovingArgs {
    /// The library's form of it.
    pub fn moving(&self) -> Moving {
        Moving {
            threads: self.threads,
            any_order: self.any_order,
            rate: self.rate_limit,
            ..Moving::default()
        }
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    let most = catena::ops::MOST_THREADS;
    match text.parse() {
        Ok(threads) if (1..=most).contains(&threads) => Ok(threads),
        _ => Err(format!("a number from 1 to {most}")),
    }
}
