package rpc_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/postern-pki/postern/appliance/rpc"
)

func calls() map[string]rpc.Call {
	who := rpc.Actor{Kind: "operator", ID: "uid:0", Source: "local"}
	return map[string]rpc.Call{
		"empty":    {},
		"a read":   {Actor: who, Allowed: true, Method: "GET", Path: "/api/v1/certificates", Query: "limit=1&subject=a%20b"},
		"an act":   {Actor: who, Allowed: true, Method: "POST", Path: "/api/v1/challenges", Body: []byte(`[{"profile":"wifi"}]`)},
		"a denial": {Actor: rpc.Actor{Kind: "operator", Source: "192.0.2.1:5"}, Method: "GET", Path: "/\xff\x00"},
		"too large": {
			Actor: who, Allowed: true, Fault: rpc.TooLarge, Method: strings.Repeat("M", rpc.MaxMethod),
			Path: strings.Repeat("p", rpc.MaxPath), Query: strings.Repeat("q", rpc.MaxPath),
		},
		"broken":       {Actor: who, Allowed: true, Fault: rpc.Broken, Method: "PUT"},
		"cross-site":   {Actor: who, Allowed: true, Fault: rpc.CrossSite, Method: "DELETE"},
		"a whole body": {Actor: who, Body: bytes.Repeat([]byte{'b'}, rpc.MaxBody)},
	}
}

func TestACallIsReadAsItWasWritten(t *testing.T) {
	for name, want := range calls() {
		data, err := want.AppendBinary(nil)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := rpc.DecodeCall(data)
		if err != nil || !reflect.DeepEqual(want, got) {
			t.Errorf("%s: %v, %.200v", name, err, got)
		}
		if len(data) > 1<<10 {
			continue
		}
		for n := range data {
			if _, err := rpc.DecodeCall(data[:n]); !errors.Is(err, rpc.ErrMessage) {
				t.Errorf("%s: %d of %d octets are read: %v", name, n, len(data), err)
			}
		}
		if _, err := rpc.DecodeCall(append(data, 0)); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%s: an octet more is read: %v", name, err)
		}
	}
}

func TestAnAnswerIsReadAsItWasWritten(t *testing.T) {
	for _, want := range []rpc.Answer{{Code: 100}, {Code: 599, Body: []byte("{}")}, {Code: 200, Body: bytes.Repeat([]byte{'b'}, rpc.MaxAnswer)}} {
		data, err := want.AppendBinary([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		data, _ = bytes.CutPrefix(data, []byte("before"))
		got, err := rpc.DecodeAnswer(data)
		if err != nil || !reflect.DeepEqual(want, got) {
			t.Errorf("%v, %.200v", err, got)
		}
		for _, cut := range [][]byte{nil, data[:1], data[:5], data[:len(data)-1], append(data, 0)} {
			if _, err := rpc.DecodeAnswer(cut); !errors.Is(err, rpc.ErrMessage) {
				t.Errorf("%d of %d octets are read: %v", len(cut), len(data), err)
			}
		}
	}
}

// What is beyond a bound is neither written nor read.
func TestBounds(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n+1) }
	for name, c := range map[string]rpc.Call{
		"kind": {Actor: rpc.Actor{Kind: long(rpc.MaxActor)}}, "id": {Actor: rpc.Actor{ID: long(rpc.MaxActor)}},
		"source": {Actor: rpc.Actor{Source: long(rpc.MaxActor)}}, "method": {Method: long(rpc.MaxMethod)},
		"path": {Path: long(rpc.MaxPath)}, "query": {Query: long(rpc.MaxPath)}, "body": {Body: []byte(long(rpc.MaxBody))},
		"fault": {Fault: rpc.CrossSite + 1},
	} {
		if _, err := c.AppendBinary(nil); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, a := range []rpc.Answer{{}, {Code: 99}, {Code: 600}, {Code: 200, Body: []byte(long(rpc.MaxAnswer))}} {
		if _, err := a.AppendBinary(nil); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("answer %d of %d octets: %v", a.Code, len(a.Body), err)
		}
	}
	data, err := rpc.Call{}.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for at, v := range map[int]byte{0: 2, 1: 4, 2: 0xff, 4: 2} {
		bad := bytes.Clone(data)
		bad[at] = v
		bad = append(bad, make([]byte, 1024)...)
		if _, err := rpc.DecodeCall(bad); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("octet %d as %#x: %v", at, v, err)
		}
	}
	for _, bad := range [][]byte{{0, 99, 0, 0, 0, 0}, {2, 88, 0, 0, 0, 0}, {0, 200, 1, 0, 0, 1}} {
		if _, err := rpc.DecodeAnswer(bad); !errors.Is(err, rpc.ErrMessage) {
			t.Errorf("%x: %v", bad, err)
		}
	}
}

func FuzzDecodeCall(f *testing.F) {
	for name, c := range calls() {
		if name == "a whole body" {
			continue
		}
		data, err := c.AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := rpc.DecodeCall(data)
		if err != nil {
			return
		}
		if again, err := c.AppendBinary(nil); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x is read, and written as %x: %v", data, again, err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte{0, 200, 0, 0, 0, 2, '{', '}'})
	f.Add([]byte{1, 147, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := rpc.DecodeAnswer(data)
		if err != nil {
			return
		}
		if again, err := a.AppendBinary(nil); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x is read, and written as %x: %v", data, again, err)
		}
	})
}
