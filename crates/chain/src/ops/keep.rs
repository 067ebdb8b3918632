//! Which points in time are worth keeping: by count, by age, and one for each hour, day, week, month or year.
//!
//! The rules are those of backup tools (restic, borg): each takes points from the newest back until it has as many as it
//! was asked for, and a point is kept if any rule takes it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;
use std::time::Duration;

/// How many points are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The newest ones.
    pub last: usize,
    /// All that are not older than this.
    pub within: Option<Duration>,
    /// The newest of each hour that has one, in so many hours.
    pub hourly: usize,
    /// The newest of each day, in so many.
    pub daily: usize,
    /// The newest of each week, in so many: weeks begin on Mondays.
    pub weekly: usize,
    /// The newest of each month, in so many.
    pub monthly: usize,
    /// The newest of each year, in so many.
    pub yearly: usize,
}

/// A rule that keeps a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// One of the newest.
    Last,
    /// Young enough.
    Within,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::Within => "within",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

impl Keep {
    /// Whether no rule keeps anything.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// For each point, newest first, the first rule that keeps it. Hours, days and years are those of a time zone.
    pub fn choose(&self, points: &[Timestamp], now: Timestamp, zone: &TimeZone) -> Vec<Option<Rule>> {
        let mut periods = [
            Period::new(Rule::Last, self.last),
            Period::new(Rule::Hourly, self.hourly),
            Period::new(Rule::Daily, self.daily),
            Period::new(Rule::Weekly, self.weekly),
            Period::new(Rule::Monthly, self.monthly),
            Period::new(Rule::Yearly, self.yearly),
        ];
        let points = points.iter().enumerate();
        points
            .map(|(number, point)| {
                // Each rule looks at each point, also where another one keeps it.
                let mut kept = None;
                for period in &mut periods {
                    let takes = period.takes(number, *point, zone);
                    kept = kept.or(takes.then_some(period.rule));
                }
                let age = now.duration_since(*point);
                let young = self
                    .within
                    .is_some_and(|within| age.unsigned_abs() <= within || age.is_negative());
                kept.or(young.then_some(Rule::Within))
            })
            .collect()
    }
}

/// A rule on its way back in time.
struct Period {
    rule: Rule,
    left: usize,
    /// The period that was taken last.
    last: Option<(i64, i64)>,
}

impl Period {
    fn new(rule: Rule, left: usize) -> Self {
        Self {
            rule,
            left,
            last: None,
        }
    }

    fn takes(&mut self, number: usize, point: Timestamp, zone: &TimeZone) -> bool {
        let time = zone.to_datetime(point);
        let year = i64::from(time.year());
        let period = match self.rule {
            Rule::Last | Rule::Within => (i64::try_from(number).unwrap_or(i64::MAX), 0),
            // Where a clock is put back, an hour comes twice: they are two.
            Rule::Hourly => {
                let hour = i64::from(time.day_of_year()) * 24 + i64::from(time.hour());
                (year * 366 * 24 + hour, i64::from(zone.to_offset(point).seconds()))
            }
            Rule::Daily => (year, i64::from(time.day_of_year())),
            Rule::Weekly => {
                let week = time.date().iso_week_date();
                (i64::from(week.year()), i64::from(week.week()))
            }
            Rule::Monthly => (year, i64::from(time.month())),
            Rule::Yearly => (year, 0),
        };
        if self.left == 0 || self.last == Some(period) {
            return false;
        }
        self.left -= 1;
        self.last = Some(period);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn chosen(keep: Keep, points: &[&str]) -> Vec<Option<Rule>> {
        let points: Vec<_> = points.iter().map(|point| at(point)).collect();
        keep.choose(&points, at("2026-03-10T12:00:00Z"), &TimeZone::UTC)
    }

    #[test]
    fn the_newest_of_each_day_is_kept() {
        let keep = Keep {
            daily: 2,
            ..Keep::default()
        };
        let points = [
            "2026-03-10T11:00:00Z",
            "2026-03-10T01:00:00Z",
            "2026-03-07T23:00:00Z",
            "2026-03-07T22:00:00Z",
            "2026-03-06T22:00:00Z",
        ];
        let daily = Some(Rule::Daily);
        assert_eq!(chosen(keep, &points), [daily, None, daily, None, None]);
    }

    #[test]
    fn grandfather_father_and_son_take_turns() {
        let keep = Keep {
            last: 1,
            weekly: 2,
            monthly: 2,
            yearly: 2,
            ..Keep::default()
        };
        let points = [
            "2026-03-10T11:00:00Z",
            "2026-03-09T11:00:00Z",
            // The Sunday before is another week.
            "2026-03-08T11:00:00Z",
            "2026-02-28T11:00:00Z",
            "2025-12-31T11:00:00Z",
        ];
        let kept: Vec<_> = chosen(keep, &points)
            .into_iter()
            .map(|rule| rule.map(|rule| rule.to_string()))
            .collect();
        let some = |word: &str| Some(word.to_owned());
        assert_eq!(
            kept,
            [
                some("last"),
                None,
                some("weekly"),
                some("monthly"),
                some("yearly")
            ]
        );
    }

    #[test]
    fn what_is_young_enough_is_kept_and_so_is_the_future() {
        let keep = Keep {
            within: Some(Duration::from_secs(3600)),
            ..Keep::default()
        };
        let points = [
            "2026-03-11T00:00:00Z",
            "2026-03-10T11:00:00Z",
            "2026-03-10T10:59:59Z",
        ];
        let within = Some(Rule::Within);
        assert_eq!(chosen(keep, &points), [within, within, None]);
    }

    #[test]
    fn an_hour_that_comes_twice_is_two() {
        let keep = Keep {
            hourly: 3,
            ..Keep::default()
        };
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        // Both are half past two there.
        let points = [at("2026-10-25T01:30:00Z"), at("2026-10-25T00:30:00Z")];
        let hourly = Some(Rule::Hourly);
        assert_eq!(
            keep.choose(&points, at("2026-10-26T00:00:00Z"), &zone),
            [hourly, hourly]
        );
        assert!(Keep::default().is_nothing());
    }
}
