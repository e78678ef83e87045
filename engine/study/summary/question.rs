//! The question that a recipe asks, from the comments at its head.

/// The question in the recipe's head: what stands behind `# Question:`, else its first comment that asks one.
pub(super) fn question(text: &str) -> Option<String> {
    let comments: Vec<&str> = text
        .lines()
        .map_while(|l| l.trim().strip_prefix('#'))
        .collect();
    let Some(first) = comments
        .iter()
        .position(|l| l.trim_start().starts_with("Question:"))
    else {
        return comments
            .iter()
            .map(|l| l.trim())
            .find(|l| l.ends_with('?'))
            .map(str::to_string);
    };
    let mut words = comments[first]
        .trim_start()
        .trim_start_matches("Question:")
        .trim()
        .to_string();
    // A continued line is indented further than the next entry.
    for line in comments[first + 1..]
        .iter()
        .take_while(|l| l.starts_with("   "))
    {
        words = format!("{words} {}", line.trim());
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::question;

    #[test]
    fn the_question_is_read_over_its_lines() {
        let text =
            "# Question:  which is\n#            better?\n# Run:       it\nrecipe \"x\" {}\n";
        assert_eq!(question(text).as_deref(), Some("which is better?"));
        assert_eq!(
            question("# About this.\n# Which codes better: a or b?\n").as_deref(),
            Some("Which codes better: a or b?")
        );
        assert_eq!(question("recipe \"x\" {}\n# Why?\n"), None);
    }
}
