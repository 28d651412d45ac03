package file

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/internal/wait"
)

// hub tells the watchers of one Store what happens in the folder. It exists
// while somebody watches. Its fields are guarded by Store.mu.
type hub struct {
	watcher  *fsnotify.Watcher
	folder   os.FileInfo                           // what it watches, wherever it is moved
	watchers map[string]map[chan struct{}]struct{} // by file
	stop     chan struct{}
	ended    bool
}

// subscribe returns a channel that is sent to after each change of file, and at
// once.
func (s *Store) subscribe(file string) (changed chan struct{}, h *hub, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return nil, nil, errClosed
	default:
	}
	if s.hub != nil && !s.hub.sees(s.dir) {
		s.hub.wakeAll() // they will see it too
		s.hub.end()
		s.hub = nil
	}
	if s.hub == nil {
		if s.hub, err = s.newHub(); err != nil {
			return nil, nil, err
		}
	}
	h = s.hub
	if h.watchers[file] == nil {
		h.watchers[file] = make(map[chan struct{}]struct{})
	}
	changed = make(chan struct{}, 1)
	changed <- struct{}{}
	h.watchers[file][changed] = struct{}{}
	return changed, h, nil
}

func (s *Store) unsubscribe(h *hub, file string, changed chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(h.watchers[file], changed)
	if len(h.watchers[file]) == 0 {
		delete(h.watchers, file)
	}
	if len(h.watchers) == 0 {
		h.end()
		if s.hub == h {
			s.hub = nil
		}
	}
}

// end lets the hub's goroutine close the watcher, for which the kernel may take
// many milliseconds. Store.mu is held.
func (h *hub) end() {
	if !h.ended {
		h.ended = true
		close(h.stop)
	}
}

// newHub starts to watch the folder. Store.mu is held.
func (s *Store) newHub() (*hub, error) {
	w, err := s.notifier()
	if err != nil {
		return nil, errors.Join(errNoNotifier, err)
	}
	err = w.Add(s.dir)
	folder, errStat := os.Stat(s.dir)
	switch {
	case errStat != nil:
		w.Close()
		return nil, s.folderGone()
	case err != nil:
		w.Close()
		return nil, errors.Join(errNoNotifier, err)
	}
	h := &hub{watcher: w, folder: folder, watchers: make(map[string]map[chan struct{}]struct{}), stop: make(chan struct{})}
	s.hubs.Go(func() { s.run(h) })
	return h, nil
}

// errNoNotifier: the kernel's limit of watchers is reached, or there are none.
var errNoNotifier = errors.New("the kernel does not tell of changes")

func (s *Store) folderGone() error {
	return fmt.Errorf("the folder %s was moved or deleted while it was watched; open the store again to make it anew", s.dir)
}

// run passes on what happens until the hub ends.
func (s *Store) run(h *hub) {
	defer h.watcher.Close()
	for {
		select {
		case <-h.stop:
			return
		case e, ok := <-h.watcher.Events:
			if !ok {
				return
			}
			s.mu.Lock()
			if e.Name == s.dir {
				h.wakeAll()
			} else {
				for w := range h.watchers[filepath.Base(e.Name)] {
					wait.Poke(w)
				}
			}
			s.mu.Unlock()
		case _, ok := <-h.watcher.Errors: // there were too many to tell
			if !ok {
				return
			}
			s.mu.Lock()
			h.wakeAll()
			s.mu.Unlock()
		}
	}
}

func (h *hub) wakeAll() {
	for _, watchers := range h.watchers {
		for w := range watchers {
			wait.Poke(w)
		}
	}
}

// sees reports whether the hub still is told of what happens in dir. The kernel
// drops a watch when the folder is deleted, moved or unmounted.
func (h *hub) sees(dir string) bool {
	now, err := os.Stat(dir)
	return err == nil && os.SameFile(now, h.folder) && len(h.watcher.WatchList()) > 0
}

// Watch yields the present record of name and the newest after each change.
func (s *Store) Watch(ctx context.Context, name string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.enter(ctx, name); err != nil {
			if ctx.Err() == nil {
				yield(backend.Record{}, err)
			}
			return
		}
		file := fileName(name)
		changed, h, err := s.subscribe(file)
		if errors.Is(err, errNoNotifier) {
			for rec, err := range backend.Poll(ctx, s, name, backend.DefaultPollInterval) {
				if !yield(rec, err) {
					return
				}
			}
			return
		}
		if err != nil {
			yield(backend.Record{}, err)
			return
		}
		defer s.unsubscribe(h, file, changed)
		stop := func() bool { return true }
		defer func() { stop() }()

		var last backend.Record
		due := make(chan struct{}, 1) // time to look, whatever was told
		for {
			told := false
			select {
			case <-ctx.Done():
				return
			case <-s.done:
				yield(backend.Record{}, errClosed)
				return
			case <-changed:
				told = true
			case <-due:
			}
			stop()
			delay := s.backstop
			e, err := s.look(ctx, name, file)
			switch {
			case ctx.Err() != nil:
				return
			case !h.sees(s.dir):
				if err = s.usable(ctx); err == nil { // Close ends the hub too
					err = s.folderGone()
				}
			case err == nil && e.corrupt != nil:
				err = e.corrupt
			case err != nil && !backend.Definite(err):
				err = nil // no descriptor left, say: look again later
			case e.Remaining > 0:
				delay = min(delay, e.Remaining)
			}
			if err != nil {
				yield(backend.Record{}, err)
				return
			}
			// Before the yield, which lasts as long as the caller likes.
			stop = s.clock.AfterFunc(delay, func() { wait.Poke(due) }).Stop
			// Absence looks the same each time, but whoever was refused in between by
			// a holder that has gone again must hear of it.
			again := told && e != nil && !e.exists()
			if e != nil && (again || last.Name == "" || e.Revision != last.Revision || e.Expired != last.Expired) {
				last = e.Record
				if !yield(last, nil) {
					return
				}
			}
		}
	}
}
