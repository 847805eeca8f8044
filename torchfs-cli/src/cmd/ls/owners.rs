//! Names of users and groups, as this machine's `/etc/passwd` and `/etc/group` have them.

use std::collections::HashMap;

/// Names by number; a number without a name stands for itself.
#[derive(Debug)]
pub struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Default for Owners {
    fn default() -> Self {
        let read = |path| parse(&std::fs::read_to_string(path).unwrap_or_default());
        Owners { users: read("/etc/passwd"), groups: read("/etc/group") }
    }
}

impl Owners {
    pub fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    pub fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// Both files have the name first and the number third. The first line of a number counts.
fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse)) {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_without_a_name_stand_for_themselves() {
        let users = parse("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n\nbad line\n");
        let owners = Owners { users, groups: HashMap::new() };
        assert_eq!(owners.user(0), "root");
        assert_eq!(owners.user(7), "7");
        assert_eq!(owners.group(0), "0");
    }
}
