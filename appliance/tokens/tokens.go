// Package tokens opens the tokens that the configuration names, which may be of
// several makers, and stands for all of them together.
//
// # What a caller may rely on
//
// A library is loaded once, however many of its tokens are named. [Open] opens all
// tokens or none. The [Set] is well when all of them are: an appliance
// that cannot sign with one of its keys serves nobody.
//
// # What it does not protect against
//
// Libraries of several makers share this process: what one does to its
// memory is done to all.
package tokens

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/hsm"
)

// A Set is one open token or more.
type Set struct {
	names   []string
	tokens  map[string]*hsm.Token
	modules []*hsm.Module
	hung    chan struct{}
	closed  chan struct{}
}

// Open loads each library and logs in to each token, once.
func Open(ctx context.Context, tokens []config.LoadedToken, log *zap.Logger) (_ *Set, err error) {
	s := &Set{tokens: make(map[string]*hsm.Token), hung: make(chan struct{}), closed: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	loaded := make(map[string]*hsm.Module)
	for _, c := range tokens {
		m := loaded[c.Module]
		if m == nil {
			if m, err = hsm.Load(c.Module); err != nil {
				return nil, opening(tokens, c, err)
			}
			loaded[c.Module] = m
			s.modules = append(s.modules, m)
		}
		token, err := m.Open(ctx, hsm.Config{
			Serial: c.Serial, Label: c.Label, PIN: hsm.PINFromFile(c.PINPath), Sessions: c.Sessions, Deadline: c.Deadline, Log: log,
		})
		if err != nil {
			return nil, opening(tokens, c, err)
		}
		s.names, s.tokens[c.Name] = append(s.names, c.Name), token
	}
	if len(s.names) == 0 {
		return nil, errors.New("no token is named")
	}
	go s.watch()
	return s, nil
}

func opening(all []config.LoadedToken, c config.LoadedToken, err error) error {
	if len(all) > 1 {
		return fmt.Errorf("opening the token %s: %w", c.Name, err)
	}
	return fmt.Errorf("opening the token: %w", err)
}

// watch tells of the first call that hangs on any of the tokens.
func (s *Set) watch() {
	first := make(chan struct{}, len(s.names))
	for _, t := range s.tokens {
		go func() {
			select {
			case <-t.Hung():
				first <- struct{}{}
			case <-s.closed:
			}
		}()
	}
	select {
	case <-first:
		close(s.hung)
	case <-s.closed:
	}
}

// Token returns the token of that name; nil if there is none.
func (s *Set) Token(name string) *hsm.Token { return s.tokens[name] }

// Slot tells which token is the first of the configuration.
func (s *Set) Slot() hsm.Slot { return s.tokens[s.names[0]].Slot() }

// Stats is the sum over all tokens.
func (s *Set) Stats() (sum hsm.Stats) {
	for _, t := range s.tokens {
		n := t.Stats()
		sum.Sign, sum.Decrypt, sum.Find, sum.Login = sum.Sign+n.Sign, sum.Decrypt+n.Decrypt, sum.Find+n.Find, sum.Login+n.Login
		sum.Sessions, sum.Dropped, sum.Retried = sum.Sessions+n.Sessions, sum.Dropped+n.Dropped, sum.Retried+n.Retried
		sum.Overdue, sum.Busy, sum.OwnSignature = sum.Overdue+n.Overdue, sum.Busy+n.Busy, sum.OwnSignature+n.OwnSignature
		sum.Lost, sum.Reloads = sum.Lost+n.Lost, sum.Reloads+n.Reloads
	}
	return sum
}

// Healthy returns nil, or what is wrong with which of the tokens.
func (s *Set) Healthy() error {
	var all []error
	for _, name := range s.names {
		if err := s.tokens[name].Healthy(); err != nil {
			if len(s.names) > 1 {
				err = fmt.Errorf("%s: %w", name, err)
			}
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// Hung is closed when a call on any of the tokens has outlived its deadline.
func (s *Set) Hung() <-chan struct{} { return s.hung }

// Close logs out everywhere and leaves the libraries. It may be called once.
func (s *Set) Close(context.Context) error { return s.close() }

func (s *Set) close() error {
	close(s.closed)
	var errs []error
	for _, name := range s.names {
		errs = append(errs, s.tokens[name].Close()) // within its deadline
	}
	for _, m := range s.modules {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
