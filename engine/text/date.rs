//! The date that chat templates write into prompts (`strftime_now`).
//!
//! Holds a calendar day and the part of `strftime` that days need. It refuses to ask the clock: a
//! study's prompts, and with them its caches and results, must not change at midnight.

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Date {
    /// Year, from 1.
    pub year: u16,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
}

impl Default for Date {
    /// 26 July 2024: the day that the templates of Llama 3.1 and 3.2 write when no date is given.
    fn default() -> Self {
        Self {
            year: 2024,
            month: 7,
            day: 26,
        }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

impl Date {
    /// The date in a `strftime` format, English names, at midnight. `Err` is the directive that it
    /// does not know.
    pub fn format(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let Self { year, month, day } = self;
            match chars.next() {
                Some('Y') => out += &format!("{year:04}"),
                Some('y') => out += &format!("{:02}", year % 100),
                Some('m') => out += &format!("{month:02}"),
                Some('d') => out += &format!("{day:02}"),
                Some('B') => out += self.month_name(),
                Some('b') => out += &self.month_name()[..3],
                Some('A') => out += self.weekday(),
                Some('a') => out += &self.weekday()[..3],
                Some('H' | 'M' | 'S') => out += "00",
                Some('%') => out.push('%'),
                Some(other) => return Err(format!("%{other}")),
                None => return Err("%".to_owned()),
            }
        }
        Ok(out)
    }

    fn month_name(self) -> &'static str {
        MONTHS[(usize::from(self.month) + 11) % 12]
    }

    /// Sakamoto's method.
    fn weekday(self) -> &'static str {
        const SHIFT: [usize; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let month = (usize::from(self.month) + 11) % 12;
        let year = usize::from(self.year).saturating_sub(usize::from(month < 2));
        let days = year + year / 4 - year / 100 + year / 400 + SHIFT[month] + usize::from(self.day);
        WEEKDAYS[days % 7]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_python_does() {
        let date = Date {
            year: 2025,
            month: 3,
            day: 5,
        };
        assert_eq!(date.format("%d %b %Y").as_deref(), Ok("05 Mar 2025"));
        assert_eq!(
            Date::default()
                .format("%A, %B %d, %y %H:%M 100%%")
                .as_deref(),
            Ok("Friday, July 26, 24 00:00 100%")
        );
        let leap = Date {
            year: 2024,
            month: 2,
            day: 29,
        };
        assert_eq!(leap.format("%a %m").as_deref(), Ok("Thu 02"));
    }

    #[test]
    fn an_unknown_directive_is_named() {
        assert_eq!(Date::default().format("%d %Q"), Err("%Q".to_owned()));
        assert_eq!(Date::default().format("%"), Err("%".to_owned()));
    }
}
