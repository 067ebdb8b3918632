//! `<throttlegroups>` of a domain, and what disks say of them.

use super::element::{Element, Result};
use crate::error::XmlErrorKind;
use crate::model::{Disk, ThrottleGroup};
use crate::throttle::{LENGTHS, LIMITS};

/// The groups of a domain.
pub(super) fn groups(domain: Element<'_, '_>) -> Result<Vec<ThrottleGroup>> {
    let mut groups: Vec<ThrottleGroup> = Vec::new();
    let elements = domain.child("throttlegroups");
    for element in elements
        .into_iter()
        .flat_map(|groups| groups.children("throttlegroup"))
    {
        let group = group(element)?;
        if groups.iter().any(|earlier| earlier.name == group.name) {
            return Err(element.malformed(format!("duplicate group name '{}' found", group.name)));
        }
        groups.push(group);
    }
    Ok(groups)
}

fn group(element: Element<'_, '_>) -> Result<ThrottleGroup> {
    let mut limits = Vec::new();
    for (word, _) in LIMITS.into_iter().chain(LENGTHS) {
        let Some(limit) = element.child(word) else {
            continue;
        };
        let number =
            limit.text().trim().parse().map_err(|_| {
                element.malformed(format!("throttle group field '{word}' must be an integer"))
            })?;
        if number > 0 {
            limits.push((word, number));
        }
    }
    let name = element
        .child("group_name")
        .map(Element::text)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| element.malformed("missing group name"))?;
    let group = ThrottleGroup {
        name: name.to_owned(),
        limits,
    };
    for what in ["bytes_sec", "iops_sec", "bytes_sec_max", "iops_sec_max"] {
        let is_set = |way: &str| group.limit(&format!("{way}_{what}")) > 0;
        if is_set("total") && (is_set("read") || is_set("write")) {
            return Err(element.malformed(format!(
                "total and read/write {what} cannot be set at the same time"
            )));
        }
    }
    Ok(group)
}

/// The groups that a disk is in.
pub(super) fn filters(disk: Element<'_, '_>) -> Result<Vec<String>> {
    let mut filters: Vec<String> = Vec::new();
    let elements = disk.child("throttlefilters");
    for element in elements
        .into_iter()
        .flat_map(|filters| filters.children("throttlefilter"))
    {
        let Some(group) = element.attribute("group") else {
            return Err(element.malformed("missing group name"));
        };
        if filters.iter().any(|earlier| earlier == group) {
            return Err(element.malformed(format!("duplicate filter name '{group}' found")));
        }
        filters.push(group.to_owned());
    }
    Ok(filters)
}

/// Refuses a disk of a domain that is in groups the domain does not have, or has limits of its own as well.
pub(super) fn check(disk: &Disk, element: Element<'_, '_>, groups: &[ThrottleGroup]) -> Result<()> {
    if disk.throttle.is_empty() {
        return Ok(());
    }
    if let Some(unknown) = disk
        .throttle
        .iter()
        .find(|name| groups.iter().all(|group| group.name != **name))
    {
        return Err(element.malformed(format!("throttle group '{unknown}' not found")));
    }
    let tuned = element.child("iotune").is_some_and(|tune| {
        let mut values = tune.all().map(|value| value.text().trim().to_owned());
        values.any(|value| !value.is_empty() && value != "0")
    });
    if tuned {
        let name = disk.target.as_deref().unwrap_or_default();
        return Err(element.error(
            XmlErrorKind::Excluded,
            format!("block 'throttlefilters' can't be used together with 'iotune' for disk '{name}'"),
        ));
    }
    Ok(())
}
