//! `catena snapshot`: internal snapshots of an image, and external ones of images, of a domain or of all images below a folder.

use super::change::{ChangeArgs, ChildrenArgs};
use super::info::{ShownSnapshot, snapshot_rows};
use super::{snapshot_all, snapshot_domain};
use crate::error::CommandError;
use crate::output::{self, Output};
use crate::target::{ImageArgs, TargetArgs};
use catena::open::Sharing;
use catena::ops::OtherChildren;
use catena::ops::snapshot::{self, Action, Request};
use catena::{Error, ErrorKind};
use catena_format::qcow2::Snapshot;
use std::io::Write;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Internal snapshots are kept in the image itself; an overlay does the same
beside it.

Examples:
  catena snapshot vm.qcow2 --name monday
      makes vm.monday.qcow2, which the guest is to use from then on
  catena snapshot create vm.qcow2 before-upgrade
  catena snapshot list vm.qcow2
  catena snapshot apply vm.qcow2 before-upgrade
  catena snapshot delete vm.qcow2 before-upgrade
  catena convert vm.qcow2 before.qcow2 --snapshot before-upgrade

With --domain, all disks of a domain that does not run get an overlay each,
all or none, and then the domain stands on them. It shows its guest the same
at every instant; where that was stopped, the same command finishes it.

  catena snapshot --domain vm.xml --name monday
  catena snapshot --domain vm --name monday --disk vdb,snapshot=no
      the domain that libvirt knows by that name; of the snapshot it keeps no
      record, unless 'virsh snapshot-create vm FILE --redefine' gives it what
      'catena snapshot-xml vm --taken' printed before

With --all, so do all images below a folder on which nothing stands: qcow2
images, and raw ones that are named with --raw, since a file that looks raw
may be anything. Overlays record the image by its name within its folder.
Whoever uses the images is told to use the overlays then. Where that was cut
off, the same command finishes it, with the same --name.

  catena snapshot --all /srv/vms --name monday
  catena snapshot --all . --raw data.img --names '{name}-{file}.qcow2'")]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    domain: snapshot_domain::DomainArgs,
    #[command(flatten)]
    all: snapshot_all::AllArgs,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List them
    List(List),
    /// Take one of the disk as it is now
    Create(Create),
    /// Make the disk what it was: what was written since is gone, unless a snapshot has it
    Apply(Apply),
    /// Delete one
    Delete(Delete),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    target: TargetArgs,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Create {
    #[command(flatten)]
    image: ImageArgs,
    /// Its name, which no other snapshot of the image has
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
struct Apply {
    #[command(flatten)]
    image: ImageArgs,
    /// Which, by id or name
    snapshot: String,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
struct Delete {
    #[command(flatten)]
    image: ImageArgs,
    /// Which, by id or name
    snapshot: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Does it.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let Some(what) = &args.what else {
        let domain = &args.domain;
        if args.all.is_given() {
            let policy = domain.policy.load()?;
            return snapshot_all::run(&args.all, domain.request.name(), &policy, &domain.change);
        }
        return snapshot_domain::run(domain);
    };
    match what {
        What::List(list) => print(list),
        What::Create(create) => {
            refuse_same_name(create)?;
            let action = Action::Create {
                name: create.name.clone(),
            };
            change(&create.image, action, OtherChildren::default(), &create.change)
        }
        What::Apply(apply) => {
            let action = Action::Apply {
                snapshot: apply.snapshot.clone(),
            };
            change(&apply.image, action, apply.children.children(), &apply.change)
        }
        What::Delete(delete) => {
            let action = Action::Delete {
                snapshot: delete.snapshot.clone(),
            };
            change(&delete.image, action, OtherChildren::default(), &delete.change)
        }
    }
}

fn change(
    image: &ImageArgs,
    action: Action,
    children: OtherChildren,
    change: &ChangeArgs,
) -> Result<ExitCode, CommandError> {
    let request = Request {
        start: image.start(),
        action,
        children,
    };
    let plan = snapshot::plan(&request, &image.policy()?)?;
    change.perform_watched("changing snapshots", &plan, |plan, observer| {
        plan.execute(observer).map(drop)
    })
}

/// Two of one name could only be told apart by their ids, and a name that is another's id not at all.
fn refuse_same_name(create: &Create) -> Result<(), CommandError> {
    let policy = create.image.policy()?;
    let there = snapshot::list(&create.image.start(), Sharing::Force, &policy)?;
    let same = |snapshot: &Snapshot| snapshot.name == create.name || snapshot.id == create.name;
    if there.iter().any(same) {
        let message = format!("there is a snapshot '{}' already", create.name);
        return Err(Error::new(ErrorKind::Conflict, message)
            .with_path(&create.image.image)
            .with_hint("choose another name, or delete that one first")
            .into());
    }
    Ok(())
}

fn print(list: &List) -> Result<ExitCode, CommandError> {
    let there = snapshot::list(
        &list.target.start(),
        list.target.sharing(),
        &list.target.policy()?,
    )?;
    let there: Vec<_> = there.into_iter().map(ShownSnapshot::from).collect();
    let mut out = output::stdout();
    match list.output {
        Output::Json => output::json(&there, &mut out)?,
        Output::Human if there.is_empty() => {}
        Output::Human => snapshot_rows(&there, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
