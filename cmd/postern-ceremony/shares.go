package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/ceremony"
	"github.com/postern-pki/postern/hsm/ceremony/pins"
)

// clearScreen wipes a terminal, with what can be scrolled back to.
const clearScreen = "\x1b[H\x1b[2J\x1b[3J"

// keepShare shows a share to one person, takes it off the screen, and wants it
// typed again, blind, from the paper.
func keepShare(ctx context.Context, number, of int, s pins.Share) error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("showing a share: %w", err)
	}
	defer func() { _ = tty.Close() }()
	_, err = fmt.Fprintf(tty, "%sShare %d of %d. Only the person who keeps it looks at the screen now.\nWrite it down:\n\n    ", clearScreen, number, of)
	if err == nil {
		err = s.Reveal(func(text []byte) error { _, err := tty.Write(text); return err })
	}
	if err == nil {
		_, err = pins.FromTerminal("\n\nWhen it is written down, type ok (it does not show)", false)(ctx)
	}
	if _, werr := fmt.Fprint(tty, clearScreen); err != nil || werr != nil {
		return errors.Join(err, werr)
	}
	again, err := pins.FromTerminal(fmt.Sprintf("share %d, from the paper", number), false)(ctx)
	if err != nil {
		return err
	}
	defer again.Wipe()
	if !s.Equal(again.PIN) {
		return &ceremony.Error{Step: "shares", Err: fmt.Errorf("share %d: %w: it is not what was shown", number, pins.ErrShare), Hint: "run the same plan again: new shares are made; destroy the papers"}
	}
	return nil
}

// askShares asks for shares, one person after the other.
func askShares(threshold int) pins.Source {
	return func(ctx context.Context) (pins.Given, error) {
		var typed []hsm.PIN
		defer func() {
			for _, t := range typed {
				t.Wipe()
			}
		}()
		for i := range threshold {
			one, err := pins.FromTerminal(fmt.Sprintf("share %d of the %d that are needed", i+1, threshold), false)(ctx)
			if err != nil {
				return pins.Given{}, err
			}
			typed = append(typed, one.PIN)
		}
		return pins.Combine(typed)
	}
}
