package file

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// noFollow keeps from opening what a symbolic link points to, and from waiting
// for the other end of a pipe.
const noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// remoteFileSystems are those on which a lock, a clock or a notification may not
// mean the same to all who use the folder, by the number that statfs(2) gives.
// Those without a name in package unix are from the sources of their drivers.
var remoteFileSystems = map[uint32]string{
	unix.NFS_SUPER_MAGIC:    "NFS",
	unix.SMB_SUPER_MAGIC:    "SMB",
	unix.CIFS_SUPER_MAGIC:   "CIFS (SMB)",
	unix.SMB2_SUPER_MAGIC:   "SMB2",
	unix.V9FS_MAGIC:         "9p (a folder of the host of this virtual machine)",
	unix.FUSE_SUPER_MAGIC:   "FUSE or virtiofs (a file system implemented by a program)",
	unix.CEPH_SUPER_MAGIC:   "CephFS",
	unix.AFS_SUPER_MAGIC:    "AFS",
	unix.AFS_FS_MAGIC:       "AFS",
	unix.CODA_SUPER_MAGIC:   "Coda",
	unix.NCP_SUPER_MAGIC:    "NCP",
	unix.OCFS2_SUPER_MAGIC:  "OCFS2",
	0x01161970:              "GFS2",
	0x0bd00bd0:              "Lustre",
	0x47504653:              "GPFS (Storage Scale)",
	0x19830326:              "BeeGFS",
	0x20030528:              "OrangeFS",
	0xaad7aaea:              "PanFS",
	0x013111a8:              "IBRIX",
	0xbeefdead:              "StorNext",
	0x61636673:              "ACFS",
	0x7c7c6673:              "PRL_FS (a Parallels shared folder)",
	0x786f4256:              "vboxsf (a VirtualBox shared folder)",
	0xbacbacbc:              "HGFS (a VMware shared folder)",
	unix.HOSTFS_SUPER_MAGIC: "hostfs (a folder of the host)",
}

// fileSystem names the file system of dir where it is a remote one.
func fileSystem(dir string) (name string, remote bool, err error) {
	st, err := statfs(dir)
	if err != nil {
		return "", false, err
	}
	name, remote = remoteFileSystems[uint32(st.Type)]
	return name, remote, nil
}

// statfs is statfs(2), until no signal is in the way.
func statfs(dir string) (st unix.Statfs_t, err error) {
	for {
		if err = unix.Statfs(dir, &st); err != unix.EINTR {
			return st, err
		}
	}
}

// writable returns an error if this user may not make and delete files in dir.
func writable(dir string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "access", Path: dir, Err: err}
	}
	return nil
}

// owner is whom the folder belongs to.
type owner struct{ uid, gid int }

func ownerOf(info fs.FileInfo) owner {
	st := info.Sys().(*syscall.Stat_t)
	return owner{int(st.Uid), int(st.Gid)}
}

func (o owner) String() string { return fmt.Sprintf("uid %d", o.uid) }

// foreign reports whether the owner is neither root nor the user of this process.
func (o owner) foreign() bool { return o.uid != 0 && o.uid != os.Geteuid() }

// give hands a new file over to the owner of the folder, if root made it there:
// one command under sudo must not lock the user out of its own leases.
func (o owner) give(path string) error {
	if os.Geteuid() != 0 || o.uid == 0 {
		return nil
	}
	return os.Lchown(path, o.uid, o.gid)
}
