//! `catena amend`: other options for an image that exists.

use super::change::ChangeArgs;
use super::options::{bad_value, on_off, parse_compat, split_all, usage};
use crate::error::CommandError;
use crate::target::ImageArgs;
use catena::Error;
use catena::ops::amend::{self, Options};
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Options (-o), with qemu-img's names:
  compat=1.1          0.10 or v2, 1.1 or v3
  refcount_bits=16    1 to 64
  lazy_refcounts=off
  data_file_raw=off   the data file is no longer a raw image of the disk

What the guest sees stays. The change is safe at every instant: a cut leaves
the image as it was or as it is to be. 'catena relink' and 'catena rebase'
change the backing image.

Example:
  catena amend old.qcow2 -o compat=1.1")]
pub struct Args {
    #[command(flatten)]
    image: ImageArgs,
    /// The options that change
    #[arg(short, long = "option", value_name = "KEY=VALUE,…", required = true)]
    option: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Changes them.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let request = amend::Request {
        start: args.image.start(),
        options: read(&args.option)?,
    };
    let plan = amend::plan(&request, &args.image.policy()?)?;
    args.change
        .perform_watched("amending", &plan, |plan, observer| plan.execute(observer))
}

fn read(lists: &[String]) -> Result<Options, Error> {
    let mut options = Options::default();
    for (key, value) in split_all(lists) {
        match key.as_str() {
            "compat" => options.version = Some(parse_compat(&value)?),
            "lazy_refcounts" => options.lazy_refcounts = Some(on_off(&key, &value)?),
            "data_file_raw" => options.data_file_raw = Some(on_off(&key, &value)?),
            "refcount_bits" => {
                let bits: u32 = value.parse().map_err(|_| bad_value(&key, &value))?;
                if !bits.is_power_of_two() || bits > 64 {
                    return Err(bad_value(&key, &value));
                }
                options.refcount_order = Some(bits.trailing_zeros());
            }
            _ => {
                return Err(usage(&format!(
                    "'{key}' is no option that can be changed here; see --help"
                )));
            }
        }
    }
    Ok(options)
}
