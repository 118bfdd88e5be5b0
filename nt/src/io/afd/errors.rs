//! What the host's refusals are to the guest: an NTSTATUS from a request, a Winsock error number from SO_ERROR.

use rustix::io::Errno;

use crate::status::Status;

/// One row: the host's error, the status, Winsock's number.
///
/// Winsock's numbers are its documentation's; the statuses are those that ws2_32 turns into these numbers again.
const ERRORS: &[(Errno, Status, u32)] = &[
    (Errno::BADF, Status::INVALID_HANDLE, 10038),
    (Errno::NOTSOCK, Status::OBJECT_TYPE_MISMATCH, 10038),
    (Errno::PERM, Status::ACCESS_DENIED, 10013),
    (Errno::ACCESS, Status::ACCESS_DENIED, 10013),
    (Errno::FAULT, Status::ACCESS_VIOLATION, 10014),
    (Errno::INVAL, Status::INVALID_PARAMETER, 10022),
    (Errno::DESTADDRREQ, Status::INVALID_PARAMETER, 10039),
    (Errno::NOPROTOOPT, Status::INVALID_PARAMETER, 10042),
    (Errno::NFILE, Status::TOO_MANY_OPENED_FILES, 10024),
    (Errno::MFILE, Status::TOO_MANY_OPENED_FILES, 10024),
    (Errno::AGAIN, Status::DEVICE_NOT_READY, 10035),
    (Errno::INPROGRESS, Status::DEVICE_NOT_READY, 10035),
    (Errno::ALREADY, Status::NETWORK_BUSY, 10037),
    (Errno::MSGSIZE, Status::BUFFER_OVERFLOW, 10040),
    (Errno::PROTOTYPE, Status::NOT_SUPPORTED, 10041),
    (Errno::PROTONOSUPPORT, Status::NOT_SUPPORTED, 10043),
    (Errno::SOCKTNOSUPPORT, Status::NOT_SUPPORTED, 10044),
    (Errno::OPNOTSUPP, Status::NOT_SUPPORTED, 10045),
    (Errno::PFNOSUPPORT, Status::NOT_SUPPORTED, 10046),
    (Errno::AFNOSUPPORT, Status::NOT_SUPPORTED, 10047),
    (Errno::ADDRINUSE, Status::SHARING_VIOLATION, 10048),
    (Errno::ADDRNOTAVAIL, Status::INVALID_ADDRESS_COMPONENT, 10049),
    // An interface that does not exist, in an address's scope.
    (Errno::NODEV, Status::INVALID_ADDRESS_COMPONENT, 10049),
    (Errno::NETDOWN, Status::NETWORK_BUSY, 10050),
    (Errno::NETUNREACH, Status::NETWORK_UNREACHABLE, 10051),
    (Errno::CONNABORTED, Status::CONNECTION_ABORTED, 10053),
    (Errno::CONNRESET, Status::CONNECTION_RESET, 10054),
    (Errno::PIPE, Status::CONNECTION_RESET, 10054),
    (Errno::NOBUFS, Status::INSUFFICIENT_RESOURCES, 10055),
    (Errno::NOMEM, Status::INSUFFICIENT_RESOURCES, 10055),
    (Errno::ISCONN, Status::CONNECTION_ACTIVE, 10056),
    (Errno::NOTCONN, Status::INVALID_CONNECTION, 10057),
    (Errno::SHUTDOWN, Status::PIPE_DISCONNECTED, 10058),
    (Errno::TIMEDOUT, Status::IO_TIMEOUT, 10060),
    (Errno::CONNREFUSED, Status::CONNECTION_REFUSED, 10061),
    (Errno::HOSTUNREACH, Status::HOST_UNREACHABLE, 10065),
];

/// The NTSTATUS of a host's error.
#[must_use]
pub fn status_of(error: Errno) -> Status {
    ERRORS.iter().find(|row| row.0 == error).map_or(Status::UNSUCCESSFUL, |row| row.1)
}

/// Winsock's number of a host's error.
#[must_use]
pub fn winsock_error(error: Errno) -> u32 {
    /// WSAEFAULT: what nobody foresaw.
    const OTHER: u32 = 10014;
    ERRORS.iter().find(|row| row.0 == error).map_or(OTHER, |row| row.2)
}
