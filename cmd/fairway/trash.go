package main

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-registry/fairway/internal/adminclient"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/registry/adminapi"
	"github.com/fairway-registry/fairway/internal/registry/meta"
)

func (a *app) trashCommand() *cobra.Command {
	return a.group(&cobra.Command{
		Use:   "trash",
		Short: "List, restore and purge deleted manifests",
		Example: `  fairway trash ls
  fairway trash restore team/app:v1`,
	}, a.trashListCommand(), a.trashRestoreCommand(), a.trashPurgeCommand())
}

func (a *app) trashListCommand() *cobra.Command {
	var repository string
	cmd := a.asks(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List deleted manifests that can still be restored",
		Long: `List deleted manifests that can still be restored, newest first. What stands
in the first column is what "fairway trash restore" takes. After EXPIRES, at the
server's policy of now, a collection may remove it for good.`,
		Example: `  fairway trash ls --repository 'team/*'`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		list, err := allTrash(cmd.Context(), c, repository)
		if err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(list)
		}
		a.printTrash(list.Items)
		return nil
	})
	cmd.Flags().StringVar(&repository, "repository", "", "only repositories that match `PATTERN`, as in \"team/*\"")
	return cmd
}

// allTrash reads the trash page by page.
func allTrash(ctx context.Context, c *adminclient.Client, repository string) (list adminapi.TrashList, err error) {
	list.Items = []adminapi.TrashItem{}
	for {
		var page adminapi.TrashList
		if err := c.Call(ctx, "GET", "/trash?"+url.Values{"repository": {repository}, "after": {list.Next}}.Encode(), nil, &page); err != nil {
			return list, err
		}
		list.Items, list.Next = append(list.Items, page.Items...), page.Next
		if page.Next == "" {
			return list, nil
		}
	}
}

func (a *app) printTrash(items []adminapi.TrashItem) {
	t := a.stdout
	var rows [][]string
	for _, i := range items {
		rows = append(rows, []string{
			string(i.Repo) + "@" + t.digest(string(i.Digest)), orDash(strings.Join(i.Tags, ",")), t.size(i.Size), t.when(i.TrashedAt), a.expiry(i), i.Actor, i.Reason,
		})
	}
	if len(rows) == 0 && t.tty {
		t.printf("The trash is empty.\n")
		return
	}
	t.table([]string{"RESTORE WITH", "TAGS", "SIZE", "DELETED", "EXPIRES", "BY", "REASON"}, rows)
}

// expiry is when the trash lets i go, at the earliest.
func (a *app) expiry(i adminapi.TrashItem) string {
	switch t := a.stdout; {
	case i.Holder != "": // whose lease keeps it, however long that is over
		return "after its lease"
	case !t.tty:
	case i.ExpiresAt.Before(t.now()):
		return "with the next run"
	}
	return a.stdout.when(i.ExpiresAt)
}

func (a *app) trashRestoreCommand() *cobra.Command {
	return a.asks(&cobra.Command{
		Use:   "restore REPOSITORY@DIGEST",
		Short: "Bring a deleted manifest back, with its tags",
		Long: `Bring a deleted manifest back, with its tags, all of its children, and
the referrers that were deleted along with it. A child comes back even if a
client deleted it. What cannot be restored is listed. The digest may be cut short as long as it is clear which one is meant, and
the tag that the manifest had may stand in its place.`,
		Example: `  fairway trash restore team/app@sha256:0a1b2c3d4e5f
  fairway trash restore team/app:v1`,
		Args: exactly("REPOSITORY@DIGEST, as \"fairway trash ls\" lists it"),
	}, func(cmd *cobra.Command, args []string, q *asking, c *adminclient.Client) error {
		req, err := findTrashed(cmd, c, args[0])
		if err != nil {
			return err
		}
		var r meta.Restored
		if err := c.Call(cmd.Context(), "POST", "/trash/restore", req, &r); err != nil {
			return err
		}
		if q.json {
			return a.stdout.json(r)
		}
		a.printRestored(r)
		return nil
	})
}

func (a *app) printRestored(r meta.Restored) {
	t := a.stdout
	t.printf("%s %s@%s\n", t.green("Restored"), r.Repo, r.Digest)
	if len(r.Tags) > 0 {
		t.printf("Tags: %s\n", strings.Join(r.Tags, ", "))
	}
	if len(r.TagsTaken) > 0 {
		t.printf("%s %s\n", t.yellow("Tags that name another manifest by now and were left alone:"), strings.Join(r.TagsTaken, ", "))
	}
	for _, d := range r.Along {
		t.printf("Along with it: %s\n", d)
	}
	for _, n := range r.NotRestored {
		t.printf("%s %s: %s\n", t.yellow("Not restored:"), n.Digest, n.Reason)
	}
}

// findTrashed makes a request of REPOSITORY@DIGEST, a clear beginning of the
// digest, or REPOSITORY:TAG. Only the latter two ask the server.
func findTrashed(cmd *cobra.Command, c *adminclient.Client, subject string) (adminapi.ItemRequest, error) {
	repo, digest, ok := strings.Cut(subject, "@")
	tag := ""
	if !ok {
		if repo, tag, ok = strings.Cut(subject, ":"); !ok || tag == "" {
			return adminapi.ItemRequest{}, usagef("%q names no manifest; want REPOSITORY@DIGEST, as \"fairway trash ls\" lists it", subject)
		}
	}
	if _, err := oci.ParseName(repo); err != nil {
		return adminapi.ItemRequest{}, usagef("%w", err)
	}
	if _, err := oci.ParseDigest(digest); err == nil {
		return adminapi.ItemRequest{Repository: repo, Digest: digest}, nil
	}
	if tag == "" && !strings.HasPrefix(digest, "sha") {
		return adminapi.ItemRequest{}, usagef("%q is no digest; want sha256:… or sha512:…", digest)
	}
	list, err := allTrash(cmd.Context(), c, repo)
	if err != nil {
		return adminapi.ItemRequest{}, err
	}
	var found []string
	for _, i := range list.Items {
		if tag != "" && slices.Contains(i.Tags, tag) || tag == "" && strings.HasPrefix(string(i.Digest), digest) {
			found = append(found, string(i.Digest))
		}
	}
	switch len(found) {
	case 0:
		return adminapi.ItemRequest{}, &adminclient.Error{Status: 404, Message: "the trash has no " + subject + "; \"fairway trash ls\" lists what it has"}
	case 1:
		return adminapi.ItemRequest{Repository: repo, Digest: found[0]}, nil
	}
	return adminapi.ItemRequest{}, usagef("%s could be any of these; name one:\n  %s", subject, repo+"@"+strings.Join(found, "\n  "+repo+"@"))
}

func (a *app) trashPurgeCommand() *cobra.Command {
	var repository string
	cmd := a.asks(&cobra.Command{
		Use:   "purge",
		Short: "Empty the trash for good",
		Long: `Empty the trash for good, by a collection that gives it no time. Blobs that
only the trash held stay for the time window, as all others do.`,
		Example: `  fairway trash purge --repository team/app`,
		Args:    exactly(),
	}, func(cmd *cobra.Command, _ []string, q *asking, c *adminclient.Client) error {
		var r meta.Run
		if err := begin(cmd.Context(), c, "/trash/purge", adminapi.PurgeRequest{Repository: repository}, &r); err != nil {
			return err
		}
		return a.follow(cmd.Context(), c, q, r)
	})
	cmd.Flags().StringVar(&repository, "repository", "", "only repositories that match `PATTERN`, as in \"team/*\"")
	return cmd
}
