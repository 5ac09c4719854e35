package keyholder

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/headfile"
)

func nothing(err error) func(t testing.TB) {
	return func(t testing.TB) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// after is the chain of a log of n lines.
func after(t testing.TB, n int) *audit.Chain {
	t.Helper()
	c := new(audit.Chain)
	for range n {
		h := c.Head()
		l, err := audit.Encode(audit.Record{
			Seq: h.Size, Prev: hex.EncodeToString(h.Prev[:]), Time: time.Unix(1_800_000_000, 0), Event: "note", Outcome: "ok", Actor: audit.Actor{Kind: "system"},
		})
		nothing(err)(t)
		nothing(c.Step(l))(t)
	}
	return c
}

// summed makes any octets a slot with a right sum.
func summed(data []byte) []byte {
	sum := sha256.Sum256(data)
	return append(bytes.Clone(data), sum[:]...)
}

// FuzzSlot has slots whose sum is right, whatever is in them.
func FuzzSlot(f *testing.F) {
	for _, n := range []int{0, 1, 2, 3, 100, 1023} {
		want := after(f, n)
		b := headfile.Slot(want, uint64(n))
		got, counter, err := headfile.DecodeSlot(b)
		if err != nil || got.Head() != want.Head() || counter != uint64(n) {
			f.Errorf("%d lines: %+v, %d, %v", n, got, counter, err)
		}
		f.Add(b[:64+32*len(want.Frontier())])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := summed(data[:min(len(data), headfile.SlotSize-sha256.Size)])
		c, counter, err := headfile.DecodeSlot(b)
		if err != nil {
			if !errors.Is(err, headfile.ErrDamaged) {
				t.Error(err)
			}
			return
		}
		if again := headfile.Slot(c, counter); !bytes.Equal(again, b) {
			t.Errorf("%x is read, and written as %x", b, again)
		}
	})
}

// headAt opens the file and returns how many lines it remembers.
func headAt(t *testing.T, dir string) (uint64, error) {
	t.Helper()
	h, c, err := openHead(dir)
	if err != nil {
		return 0, err
	}
	nothing(h.close())(t)
	return c.Head().Size, nil
}

// A slot that a crash tore leaves the other one; two that are damaged are told from
// a file that is new.
func TestATornSlotLeavesTheOther(t *testing.T) {
	dir := t.TempDir()
	h, c, err := openHead(dir)
	if err != nil || c.Head().Size != 0 {
		t.Fatalf("a new file: %+v, %v", c, err)
	}
	for _, n := range []int{3, 7, 9} {
		c := after(t, n)
		nothing(h.ensure(c.Head().Size, func() *audit.Chain { return c }))(t)
	}
	nothing(h.close())(t)
	path := filepath.Join(dir, "head")
	whole, err := os.ReadFile(path)
	nothing(err)(t)
	if n, err := headAt(t, dir); n != 9 || err != nil {
		t.Fatalf("it remembers %d lines, %v", n, err)
	}
	newest, counter := 0, uint64(0)
	for i := range 2 {
		if _, n, err := headfile.DecodeSlot(whole[i*headfile.SlotSize : (i+1)*headfile.SlotSize]); err == nil && n > counter {
			newest, counter = i, n
		}
	}
	for at, what := range map[int]string{0: "its first octet", 70: "a hash", 150: "its sum"} {
		torn := bytes.Clone(whole)
		torn[newest*headfile.SlotSize+at] ^= 1
		nothing(os.WriteFile(path, torn, 0o600))(t)
		if n, err := headAt(t, dir); n != 7 || err != nil {
			t.Errorf("%s is torn: it remembers %d lines, %v; want those of the other slot", what, n, err)
		}
		torn[(1-newest)*headfile.SlotSize+at] ^= 1
		nothing(os.WriteFile(path, torn, 0o600))(t)
		if _, err := headAt(t, dir); !errors.Is(err, ErrHeadFile) {
			t.Errorf("%s is torn in both: %v", what, err)
		}
	}
	for what, data := range map[string][]byte{"empty": nil, "cut off": whole[:len(whole)-1], "longer": append(bytes.Clone(whole), 0), "zeros": make([]byte, 2*headfile.SlotSize)} {
		nothing(os.WriteFile(path, data, 0o600))(t)
		if _, err := headAt(t, dir); !errors.Is(err, ErrHeadFile) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A file that was not finished is begun again: nothing had been signed yet.
func TestAHeadFileThatWasNotFinished(t *testing.T) {
	dir := t.TempDir()
	nothing(os.WriteFile(filepath.Join(dir, "head.new"), []byte("half"), 0o600))(t)
	if n, err := headAt(t, dir); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// A write that failed is made again in the same place: the other slot is the one
// that is surely whole.
func TestAWriteThatFailsKeepsTheOtherSlot(t *testing.T) {
	dir := t.TempDir()
	h, _, err := openHead(dir)
	nothing(err)(t)
	seven := after(t, 7)
	nothing(h.ensure(7, func() *audit.Chain { return seven }))(t)
	file, path := h.f, filepath.Join(dir, "head")
	h.f, err = os.Open(path) // which cannot be written
	nothing(err)(t)
	if err := h.ensure(8, func() *audit.Chain { return after(t, 8) }); err == nil {
		t.Fatal("a head that was not kept counts as kept")
	}
	nothing(h.close())(t)
	h.f = file
	nine := after(t, 9)
	nothing(h.ensure(9, func() *audit.Chain { return nine }))(t)
	nothing(h.close())(t)
	data, err := os.ReadFile(path)
	nothing(err)(t)
	var sizes []uint64
	for i := range 2 {
		c, _, err := headfile.DecodeSlot(data[i*headfile.SlotSize : (i+1)*headfile.SlotSize])
		nothing(err)(t)
		sizes = append(sizes, c.Head().Size)
	}
	if min(sizes[0], sizes[1]) != 7 || max(sizes[0], sizes[1]) != 9 {
		t.Errorf("the slots have heads of %v lines, want 7 and 9", sizes)
	}
}

// Two keyholders do not keep their heads in one folder.
func TestOneKeyholderAFolder(t *testing.T) {
	dir := t.TempDir()
	h, _, err := openHead(dir)
	nothing(err)(t)
	if _, err := headAt(t, dir); !errors.Is(err, ErrHeadInUse) {
		t.Errorf("a second one: %v", err)
	}
	nothing(h.close())(t)
	if _, err := headAt(t, dir); err != nil {
		t.Error(err)
	}
}
