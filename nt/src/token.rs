//! Access tokens: who the guest is. One user, an elevated administrator.

/// Sub-authorities of a SID whose identifier authority is SECURITY_NT_AUTHORITY unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sid {
    /// Identifier authority.
    pub authority: u8,
    /// Sub-authorities.
    pub parts: &'static [u32],
}

impl Sid {
    /// The guest's user.
    pub const USER: Self = Self { authority: 5, parts: &[21, 0, 0, 0, 1000] };
    /// Its primary group.
    pub const DOMAIN_USERS: Self = Self { authority: 5, parts: &[21, 0, 0, 0, 513] };
    /// Everyone.
    pub const WORLD: Self = Self { authority: 1, parts: &[0] };
    /// LOCAL.
    pub const LOCAL: Self = Self { authority: 2, parts: &[0] };
    /// BUILTIN\Administrators.
    pub const ADMINISTRATORS: Self = Self { authority: 5, parts: &[32, 544] };
    /// BUILTIN\Users.
    pub const USERS: Self = Self { authority: 5, parts: &[32, 545] };
    /// NT AUTHORITY\Authenticated Users.
    pub const AUTHENTICATED: Self = Self { authority: 5, parts: &[11] };
    /// NT AUTHORITY\INTERACTIVE.
    pub const INTERACTIVE: Self = Self { authority: 5, parts: &[4] };
    /// The logon session.
    pub const LOGON: Self = Self { authority: 5, parts: &[5, 0, 0] };
    /// NT AUTHORITY\SYSTEM.
    pub const SYSTEM: Self = Self { authority: 5, parts: &[18] };
    /// High mandatory level.
    pub const HIGH_INTEGRITY: Self = Self { authority: 16, parts: &[0x3000] };

    /// SID as in guest memory.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![1, self.parts.len() as u8, 0, 0, 0, 0, 0, self.authority];
        for part in self.parts {
            bytes.extend_from_slice(&part.to_le_bytes());
        }
        bytes
    }
}

/// SE_GROUP_* attributes of the groups: mandatory, enabled by default, enabled.
const ENABLED_GROUP: u32 = 7;
/// SE_GROUP_OWNER.
const OWNER: u32 = 8;
/// SE_GROUP_LOGON_ID.
const LOGON_ID: u32 = 0xC000_0000;

/// Groups with their attributes.
pub const GROUPS: &[(Sid, u32)] = &[
    (Sid::DOMAIN_USERS, ENABLED_GROUP),
    (Sid::WORLD, ENABLED_GROUP),
    (Sid::LOCAL, ENABLED_GROUP),
    (Sid::INTERACTIVE, ENABLED_GROUP),
    (Sid::AUTHENTICATED, ENABLED_GROUP),
    (Sid::ADMINISTRATORS, ENABLED_GROUP | OWNER),
    (Sid::USERS, ENABLED_GROUP),
    (Sid::LOGON, ENABLED_GROUP | LOGON_ID),
];

/// SE_PRIVILEGE_ENABLED_BY_DEFAULT.
pub const PRIVILEGE_ENABLED_BY_DEFAULT: u32 = 1;
/// SE_PRIVILEGE_ENABLED.
pub const PRIVILEGE_ENABLED: u32 = 2;
/// SE_PRIVILEGE_REMOVED.
pub const PRIVILEGE_REMOVED: u32 = 4;

/// TOKEN_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// Of a process.
    Primary = 1,
    /// Of a thread.
    Impersonation = 2,
}

/// An access token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Primary or impersonation.
    pub kind: TokenType,
    /// SECURITY_IMPERSONATION_LEVEL.
    pub impersonation_level: u32,
    /// Privileges (LUID, low part) with their attributes.
    pub privileges: Vec<(u32, u32)>,
    /// TokenId.
    pub id: u64,
    /// Counts changes.
    pub modified_id: u64,
}

impl Token {
    /// The token a process starts with.
    #[must_use]
    pub fn primary(id: u64) -> Self {
        // SeChangeNotify and SeCreateGlobal are enabled by default, SeImpersonate too; the rest only on request.
        let enabled = PRIVILEGE_ENABLED | PRIVILEGE_ENABLED_BY_DEFAULT;
        let privileges = [5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 22, 23, 24, 25, 28, 29, 30, 33, 34, 35]
            .map(|luid| (luid, if matches!(luid, 23 | 29 | 30) { enabled } else { 0 }));
        Self { kind: TokenType::Primary, impersonation_level: 0, privileges: privileges.into(), id, modified_id: id }
    }

    /// Changes a privilege's attributes; returns the previous ones, `None` if the token lacks it.
    pub fn adjust(&mut self, luid: u32, attributes: u32) -> Option<u32> {
        let index = self.privileges.iter().position(|&(l, _)| l == luid)?;
        if attributes & PRIVILEGE_REMOVED != 0 {
            self.modified_id += 1;
            return Some(self.privileges.remove(index).1);
        }
        let (_, current) = self.privileges.get_mut(index)?;
        let wanted = *current & PRIVILEGE_ENABLED_BY_DEFAULT | attributes & PRIVILEGE_ENABLED;
        let previous = std::mem::replace(current, wanted);
        if previous != wanted {
            self.modified_id += 1;
        }
        Some(previous)
    }

    /// Whether a privilege is enabled.
    #[must_use]
    pub fn has_enabled(&self, luid: u32) -> bool {
        self.privileges.iter().any(|&(l, attributes)| l == luid && attributes & PRIVILEGE_ENABLED != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sids_have_nt_layout() {
        assert_eq!(
            Sid::ADMINISTRATORS.to_bytes(),
            [1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 0x20, 2, 0, 0],
            "S-1-5-32-544"
        );
        assert_eq!(Sid::USER.to_bytes().len(), 28);
    }

    #[test]
    fn privileges_are_adjusted() {
        let mut token = Token::primary(1);
        assert!(!token.has_enabled(20) && token.has_enabled(23));
        assert_eq!(token.adjust(20, PRIVILEGE_ENABLED), Some(0));
        assert!(token.has_enabled(20) && token.modified_id == 2);
        assert_eq!(token.adjust(20, PRIVILEGE_REMOVED), Some(PRIVILEGE_ENABLED));
        assert_eq!(token.adjust(20, PRIVILEGE_ENABLED), None);
        assert_eq!(token.adjust(2, 0), None);
    }
}
