package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/postern-pki/postern/test/site"
)

// bundle exports the log as an auditor gets it, and has both verifiers look at it.
func (d *demo) bundle() error {
	d.step("A bundle for an auditor, checked by our verifier and by openssl, coreutils and jq")
	tar, trust := d.site.Path("bundle.tar"), d.site.Path("ceremony", "audit.pem")
	out, errOut, code := d.site.Postern(d.ctx, nil, "audit", "export", "--out", tar)
	if code != 0 {
		return fmt.Errorf("postern audit export: %s", errOut)
	}
	d.quote(out)
	out, errOut, code = site.Run(d.ctx, nil, filepath.Join(d.site.Bin(), "postern-verify"), tar, "--trust", trust, "--report", d.site.Path("report.html"))
	if code != 0 {
		return fmt.Errorf("postern-verify: exit %d: %s%s", code, out, errOut)
	}
	d.say("  postern-verify: %s", lastLine(out))
	if out, errOut, code = site.Run(d.ctx, nil, "tar", "-C", d.site.Dir, "-xf", tar); code != 0 {
		return fmt.Errorf("tar: %s%s", out, errOut)
	}
	folders, err := filepath.Glob(d.site.Path("bundle-*", "verify.sh"))
	if err != nil || len(folders) != 1 {
		return fmt.Errorf("the bundle has %d folders: %w", len(folders), err)
	}
	if out, errOut, code = site.Run(d.ctx, nil, "sh", folders[0], trust); code != 0 {
		return fmt.Errorf("verify.sh: exit %d: %s%s", code, out, errOut)
	}
	d.say("  verify.sh: %s", lastLine(out))
	d.say("  a report for people: %s", d.site.Path("report.html"))
	return nil
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndex(text, "\n")+1:]
}
