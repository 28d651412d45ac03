package servers

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// program is a server that can be had in several ways.
type program struct {
	name     string
	imageEnv string // names an image other than the public one
	image    string
	module   string // of which it is built, in integration/build/NAME; "": it cannot be built
	stamp    func(version string) string

	// Of a program that is not one of Kubernetes:
	also    string // what else it may be called
	oldest  string // version that will do, "": any
	missing string // what to do about it
}

var (
	kubeAPIServer = program{
		name:     "kube-apiserver",
		imageEnv: "LEASEHOLD_TEST_KUBE_APISERVER_IMAGE",
		image:    "registry.k8s.io/kube-apiserver:v1.37.2",
		module:   "k8s.io/kubernetes",
		stamp: func(version string) string {
			// Without it the server believes to be v0.0.0 and refuses its own
			// feature gates.
			const pkg = "k8s.io/component-base/version."
			parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
			return fmt.Sprintf(" -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s", pkg, version, parts[0], parts[1])
		},
	}
	etcd = program{
		name:     "etcd",
		imageEnv: "LEASEHOLD_TEST_ETCD_IMAGE",
		image:    "gcr.io/etcd-development/etcd:v3.7.3",
		module:   "go.etcd.io/etcd/server/v3",
	}
	redis = program{
		name:     "redis-server",
		imageEnv: "LEASEHOLD_TEST_REDIS_IMAGE",
		image:    "docker.io/library/redis:8.2",
		also:     "valkey-server",
		oldest:   "v7.0.0", // with hostnames in clusters
		missing:  "apt-get install redis-server, or Docker",
	}
)

func (p program) imageName() string {
	if name := os.Getenv(p.imageEnv); name != "" {
		return name
	}
	return p.image
}

// found tells how programs can be run: from images where there are some, else
// from files.
type found struct {
	engine  *engine // nil: as processes
	images  map[string]string
	files   map[string]string
	origin  string            // of the programs, for people
	version map[string]string // of each
}

// find settles how programs are run. All of them come from the same place. Its
// error tells what was tried.
func find(ctx context.Context, docker bool, programs ...program) (*found, error) {
	var tried []error
	var e *engine
	if docker {
		var err error
		if e, err = dockerEngine(ctx); err != nil {
			tried = append(tried, err)
		}
	}
	if e != nil {
		f, err := findImages(ctx, e, programs)
		if err == nil {
			return f, nil
		}
		tried = append(tried, err)
	}
	f, err := findFiles(ctx, programs)
	if err != nil {
		tried = append(tried, err)
		if f, err = buildFiles(ctx, programs); err != nil {
			return nil, errors.Join(append(tried, err)...)
		}
	}
	for _, p := range programs {
		if f.version[p.name], err = versionOf(ctx, f.files[p.name]); err != nil {
			return nil, err
		}
	}
	if e == nil {
		return f, nil
	}
	needed := make(map[string][]string)
	for _, p := range programs {
		if needed[p.name], err = libraries(ctx, f.files[p.name]); err != nil {
			return f, ctx.Err() // it runs here at least
		}
	}
	images := make(map[string]string)
	for _, p := range programs {
		if images[p.name], err = e.imageOf(ctx, p.name, f.version[p.name], f.files[p.name], needed[p.name]); err != nil {
			return nil, err
		}
	}
	f.engine, f.images = e, images
	return f, nil
}

// describe is one line for people.
func (f *found) describe(programs ...program) string {
	names := make([]string, len(programs))
	for i, p := range programs {
		names[i] = p.name + " " + f.version[p.name]
	}
	where := "as processes"
	if f.engine != nil {
		where = "in containers (Docker " + f.engine.version + ")"
	}
	return fmt.Sprintf("%s %s, %s", strings.Join(names, " and "), where, f.origin)
}

func findImages(ctx context.Context, e *engine, programs []program) (*found, error) {
	f := &found{engine: e, images: make(map[string]string), version: make(map[string]string)}
	var names []string
	for _, p := range programs {
		name := p.imageName()
		if name == "none" {
			return nil, fmt.Errorf("images: %s=none", p.imageEnv)
		}
		if err := e.pull(ctx, name); err != nil {
			return nil, err
		}
		f.images[p.name] = name
		f.version[p.name] = "of unknown version"
		if _, tag, ok := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ":"); ok {
			f.version[p.name] = tag
		}
		names = append(names, name)
	}
	f.origin = "from " + strings.Join(names, " and ")
	return f, nil
}

func findFiles(ctx context.Context, programs []program) (*found, error) {
	f := &found{files: make(map[string]string), version: make(map[string]string), origin: "found in the PATH"}
	for _, p := range programs {
		if p.missing != "" {
			path, err := newEnough(ctx, p)
			if err != nil {
				return nil, fmt.Errorf("programs: %w", err)
			}
			f.files[p.name] = path
			continue
		}
		name := p.name
		if assets := os.Getenv("KUBEBUILDER_ASSETS"); assets != "" {
			f.origin = "found in KUBEBUILDER_ASSETS"
			name = filepath.Join(assets, p.name)
		}
		path, err := exec.LookPath(name)
		if err != nil {
			return nil, fmt.Errorf("programs: %w", err)
		}
		f.files[p.name] = path
	}
	return f, ctx.Err()
}

// newEnough finds a program under one of its names.
func newEnough(ctx context.Context, p program) (string, error) {
	var errs []error
	for _, name := range []string{p.name, p.also} {
		path, err := exec.LookPath(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		version, err := versionOf(ctx, path)
		if err == nil && older(version, p.oldest) {
			err = fmt.Errorf("%s is %s, want %s or later", path, version, p.oldest)
		}
		if err == nil {
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// older compares two versions as far as their major and minor number go.
func older(a, b string) bool {
	number := func(v string) (n [2]int) {
		for i, part := range strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)[:2] {
			n[i], _ = strconv.Atoi(part)
		}
		return n
	}
	x, y := number(a), number(b)
	return slices.Compare(x[:], y[:]) < 0
}

// versionOf asks a program, which shows that it can be run, too.
func versionOf(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", path, err, bytes.TrimSpace(out))
	}
	v := regexp.MustCompile(`\bv?(\d+\.\d+\.\d+\S*)`).FindSubmatch(out)
	if v == nil {
		return "", fmt.Errorf("%s --version: no version in %q", path, out)
	}
	return "v" + string(v[1]), nil
}

// libraries returns the files that a program needs besides itself where there
// is nothing else, its interpreter among them; of a static one there are none.
func libraries(ctx context.Context, file string) ([]string, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("containers run programs of Linux")
	}
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(prog.Open())
		if err != nil {
			return nil, err
		}
		interpreter := string(bytes.TrimRight(name, "\x00"))
		// It knows best what it will load, and from where.
		out, err := exec.CommandContext(ctx, interpreter, "--list", file).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("not found")) {
			return nil, fmt.Errorf("%s --list %s: %w: %s", interpreter, file, err, out)
		}
		all := []string{interpreter}
		for _, m := range regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)\s*$`).FindAllSubmatch(out, -1) {
			all = append(all, string(m[1]))
		}
		slices.Sort(all)
		return slices.Compact(all), nil
	}
	return nil, nil
}

func buildFiles(ctx context.Context, programs []program) (*found, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	f := &found{files: make(map[string]string), version: make(map[string]string), origin: "built from Go modules"}
	for _, p := range programs {
		if p.module == "" {
			return nil, fmt.Errorf("building: %s is not made of Go: %s", p.name, p.missing)
		}
		if f.files[p.name], err = build(ctx, root, p); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// repository is the folder of this repository, in which tests are run.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "integration", "build")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("building: %s is not within the repository", dir)
		}
	}
}

// cache is the folder for what is made once and kept.
func cache(root string) (string, error) {
	dir := filepath.Join(root, ".cache", "servers")
	return dir, os.MkdirAll(dir, 0o755)
}

// build returns the program built from its module, which is done once.
func build(ctx context.Context, root string, p program) (string, error) {
	src := filepath.Join(root, "integration", "build", p.name)
	mod, err := os.ReadFile(filepath.Join(src, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("building %s: %w", p.name, err)
	}
	m := regexp.MustCompile(`(?m)^\s*(?:require\s+)?` + regexp.QuoteMeta(p.module) + `\s+(v\S+)`).FindSubmatch(mod)
	if m == nil {
		return "", fmt.Errorf("building %s: its go.mod does not require %s", p.name, p.module)
	}
	version := string(m[1])
	dir, err := cache(root)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, p.name+"-"+version)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if os.Getenv("LEASEHOLD_TEST_BUILD") == "off" {
		return "", fmt.Errorf("building %s: LEASEHOLD_TEST_BUILD=off", p.name)
	}
	unlock, err := lock(ctx, filepath.Join(dir, "."+p.name+".lock"), "another process builds "+p.name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // by the other
	}

	ldflags := "-s -w"
	if p.stamp != nil {
		ldflags += p.stamp(version)
	}
	tmp := path + ".tmp"
	defer os.Remove(tmp)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", ldflags, "-o", tmp, ".")
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0", "GOFLAGS=")
	// go build runs the compiler: all of them must go.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	progress("building %s %s from Go modules, once; it is kept in %s", p.name, version, dir)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for t := time.NewTicker(30 * time.Second); ; {
			select {
			case <-t.C:
				progress("building %s %s: %v", p.name, version, time.Since(start).Round(time.Second))
			case <-done:
				t.Stop()
				return
			}
		}
	}()
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building %s %s: %w\n%s", p.name, version, err, tail(out.Bytes(), 20))
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", err
	}
	progress("built %s %s in %v", p.name, version, time.Since(start).Round(time.Second))
	return path, nil
}

// lock waits until this process has the lock file, and says why if it must wait.
func lock(ctx context.Context, path, why string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for said := false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !said {
			said = true
			progress("waiting: %s", why)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting: %s: %w", why, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// progress tells people why nothing seems to happen.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "servers: "+format+"\n", args...)
}

// tail is the end of what a program said.
func tail(out []byte, lines int) string {
	all := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
